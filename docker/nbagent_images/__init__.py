"""Image recipes for Docker sandboxes, as package data. There are none yet: they come with the Docker backend."""
