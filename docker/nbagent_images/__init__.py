"""Image recipes for Docker sandboxes. There are none yet: they come with the Docker backend, as package data of this package."""
