"""The keys of the launchers: where the jobs of a sweep, of `evaluate` and of `main` run."""

import socket
from dataclasses import dataclass, field

from steps.config.keys import MISSING, key
from steps.config.paths import user_directory

SECONDS_TO_ANSWER = 10


@dataclass
class Launcher:
    """Where jobs run: by default here, one after the other."""

    name: str = MISSING

    def overrides(self) -> list[str]:
        """Return what Hydra has to know about it."""
        return []

    @property
    def package(self) -> str:
        """Return the package that it needs; "" for none."""
        return ""

    def fault(self) -> str:
        """Return a sentence about why no job can be launched; "" if nothing is known to be in the way."""
        return ""

    def release(self) -> None:
        """Free what it holds after its jobs."""


@dataclass
class JoblibLauncher(Launcher):
    """Processes of this machine."""

    name: str = key("joblib", one_of=("joblib",))
    jobs: int | None = key(None, at_least=1)

    def overrides(self) -> list[str]:
        """Return what Hydra has to know about it."""
        return ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={self.jobs or -1}"]

    @property
    def package(self) -> str:
        """Return the package that it needs."""
        return "hydra_joblib_launcher"


@dataclass
class SlurmLauncher(Launcher):
    """Jobs of Slurm, or of this machine with `cluster=local`."""

    name: str = key("slurm", one_of=("slurm",))
    cluster: str = key("slurm", one_of=("slurm", "local"))
    folder: str = key(".submitit", free_text=True, is_path=True)
    partition: str | None = key(None, free_text=True)
    minutes: int = key(60, at_least=1)
    cpus: int = key(1, at_least=1)
    gpus: int = key(0, at_least=0)
    memory_gb: int | None = key(None, at_least=1)

    def overrides(self) -> list[str]:
        """Return what Hydra has to know about it."""
        words = [
            f"hydra/launcher=submitit_{self.cluster}",
            f"hydra.launcher.submitit_folder={f'{user_directory() / self.folder}/%j'!r}",
            f"hydra.launcher.timeout_min={self.minutes}",
            f"hydra.launcher.cpus_per_task={self.cpus}",
        ]
        words += [f"hydra.launcher.gpus_per_node={self.gpus}"] if self.gpus else []
        words += [f"hydra.launcher.mem_gb={self.memory_gb}"] if self.memory_gb else []
        words += [f"hydra.launcher.partition={self.partition!r}"] if self.partition else []
        return words

    @property
    def package(self) -> str:
        """Return the package that it needs."""
        return "hydra_submitit_launcher"


@dataclass
class RayLauncher(Launcher):
    """Tasks of a Ray cluster, or of a Ray on this machine that runs only as long as they do."""

    name: str = key("ray", one_of=("ray",))
    address: str | None = key(None, free_text=True)
    cpus: int = key(1, at_least=1)
    gpus: int = key(0, at_least=0)
    memory_gb: int | None = key(None, at_least=1)

    def overrides(self) -> list[str]:
        """Return what Hydra has to know about it."""
        remote = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 1}
        if self.memory_gb:
            remote["memory"] = self.memory_gb * 1024**3
        # Without "local", Ray joins whatever cluster it finds. With an address, it refuses to size the object store.
        joined = ["+hydra.launcher.ray.init.object_store_memory=null"] if self.address else []
        return [
            "hydra/launcher=ray",
            f"hydra.launcher.ray.init.address={self.address or 'local'!r}",
            "+hydra.launcher.ray.init.include_dashboard=false",
            "+hydra.launcher.ray.init.log_to_driver=false",
            *joined,
            *(f"+hydra.launcher.ray.remote.{name}={value}" for name, value in remote.items()),
        ]

    @property
    def package(self) -> str:
        """Return the package that it needs."""
        return "hydra_ray_launcher"

    def fault(self) -> str:
        """Return a sentence if no cluster answers. Ray itself would try for minutes."""
        host, _, port = (self.address or "").rpartition(":")
        if not port.isdigit() or "/" in host:
            return ""
        try:
            socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            return f"launcher.address: no Ray answers at {self.address} ({why}). Start it, or leave the address out."
        return ""

    def release(self) -> None:
        """Leave the cluster, or end the Ray of this machine: it would disturb what is measured afterwards."""
        import ray

        ray.shutdown()


LAUNCHERS: dict[str, type[Launcher]] = {"joblib": JoblibLauncher, "ray": RayLauncher, "slurm": SlurmLauncher}


@dataclass
class LaunchConfig:
    """Where jobs run."""

    launcher: Launcher = field(default_factory=Launcher)
