"""`nbagent sandbox`: attacks run in the user's own engine, clearing up, and how quickly sandboxes are there."""
