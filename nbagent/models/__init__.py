"""Models: something that completes prompts, in process or behind an endpoint."""
