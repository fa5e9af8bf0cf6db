"""Run uvicorn on the app of a version, in this process or in several workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from steps.config.serve import ServeConfig
from steps.service.follower import Follower
from steps.service.loading import load, version_of
from steps.store import connection

# A worker is a fresh process: it finds its configuration here.
CONFIG = "PHI3_SERVE_CONFIG"
KEY_FILE = "PHI3_API_KEY_FILE"


def make_app(config: ServeConfig) -> Follower:
    """Load the version that the alias names; raise StepError if there is none, or if it does not answer."""
    client = connection.connect()
    name, alias = config.registered_model, config.alias

    def find_version() -> str:
        return version_of(client, name, alias)

    follower = Follower(load(name, find_version(), alias), find_version, lambda version: load(name, version, alias))
    if config.follow:
        follower.start(config.poll_seconds)
    return follower


def worker_app() -> Follower:
    """Return the app of a worker."""
    return make_app(ServeConfig(**json.loads(os.environ[CONFIG])))


def serve_until_stopped(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests that are being answered."""
    import uvicorn

    if config.key_file:
        os.environ[KEY_FILE] = config.key_file
    app: Any = make_app(config) if config.workers == 1 else f"{__name__}:worker_app"
    if config.workers > 1:
        os.environ[CONFIG] = json.dumps(asdict(config))
    settings = uvicorn.Config(
        app,
        factory=config.workers > 1,
        host=config.host,
        port=config.port,
        workers=config.workers,
        lifespan="off",
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=config.shutdown_seconds,
        limit_concurrency=config.max_connections,
        ssl_certfile=config.certificate_file,
        ssl_keyfile=config.certificate_key_file,
    )
    _without_signals(lambda: _run(settings))


def _run(settings: Any) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    if settings.workers == 1:
        uvicorn.Server(settings).run()
    else:
        Multiprocess(settings, [settings.bind_socket()]).run()


def _without_signals(run: Callable[[], None]) -> None:
    """Run a server that ends by a signal, and go on after it: uvicorn raises the signal again when it has ended."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
