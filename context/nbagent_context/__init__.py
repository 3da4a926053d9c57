"""What the model sees: policies that turn history and notebook into a prompt within a budget.

Knows nothing of kernels' processes, models or tasks; notebooks come as plain nbformat nodes.
"""

from nbagent_context.policies import policy
from nbagent_context.types import (
    Brief,
    Budget,
    BudgetTooSmall,
    Elision,
    Exchange,
    History,
    Memory,
    Policy,
    SummaryRequest,
    Window,
    exchanges_of,
    message,
    text_of,
)

__all__ = [
    "Brief",
    "Budget",
    "BudgetTooSmall",
    "Elision",
    "Exchange",
    "History",
    "Memory",
    "Policy",
    "SummaryRequest",
    "Window",
    "exchanges_of",
    "message",
    "policy",
    "text_of",
]
