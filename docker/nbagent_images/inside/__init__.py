"""Files that are copied into the images and run there, by the image's Python with its standard library alone."""
