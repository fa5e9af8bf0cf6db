"""The code that travels inside every custom logged model: it imports nothing else of the project."""
