"""The agent in its notebook: tasks, environment, tools, models, rollouts, trajectories, replay. Imports nothing heavy."""

__version__ = "0.1.0"
