"""The code that travels inside every custom logged model. It imports nothing else of the project."""
