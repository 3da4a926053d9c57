"""Image recipes for Docker sandboxes, as package data."""
