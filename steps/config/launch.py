"""The keys of the launchers: where the jobs of a sweep, of `evaluate` and of `main` run."""

from dataclasses import dataclass, field

from steps.config.keys import MISSING, key
from steps.config.paths import user_directory


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


LAUNCHERS: dict[str, type[Launcher]] = {"joblib": JoblibLauncher, "slurm": SlurmLauncher}


@dataclass
class LaunchConfig:
    """Where jobs run."""

    launcher: Launcher = field(default_factory=Launcher)
