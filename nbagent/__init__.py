"""The agent in its notebook: tasks, environment, tools, models, rollouts, trajectories, replay. Stays light."""

__version__ = "0.1.0"
