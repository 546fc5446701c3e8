"""Text into speech: the interface every engine has, and the engines."""
