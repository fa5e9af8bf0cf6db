"""Serve a registered version: load it into an ASGI app, and go over to another one when its alias moves."""
