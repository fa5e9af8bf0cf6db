"""The keys of the step `serve`."""

from dataclasses import dataclass

from steps.config.keys import key


@dataclass
class ServeConfig:
    """Which version to serve, and how.

    With `follow`, the server looks every `poll_seconds` which version the alias names, and goes over to it. On SIGTERM
    it takes no more requests and finishes those it has, for at most `shutdown_seconds`. `key_file` holds one API key
    a line. `certificate_file` and `certificate_key_file` are for TLS. With several `workers`, each is a process with
    a copy of the model.
    """

    registered_model: str = "phi3"
    alias: str = "champion"
    host: str = "127.0.0.1"
    port: int = key(5001, at_least=0, at_most=65535)
    workers: int = key(1, at_least=1, at_most=64)
    follow: bool = False
    poll_seconds: float = key(10.0, at_least=0.1)
    shutdown_seconds: int = key(30, at_least=0)
    max_connections: int | None = key(None, at_least=1)
    key_file: str | None = key(None, free_text=True, is_path=True)
    certificate_file: str | None = key(None, free_text=True, is_path=True)
    certificate_key_file: str | None = key(None, free_text=True, is_path=True)
