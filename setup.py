"""What pyproject.toml cannot say: configs/ and jobs/, which lie beside the package, are installed within it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "jobs")


class BuildWithConfigs(build_py):
    """Copies them too; an editable install finds them where they lie."""

    def run(self) -> None:
        super().run()
        for name in () if self.editable_mode else SHIPPED:
            copy = Path(self.build_lib) / "pipeline" / name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(name, copy, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": BuildWithConfigs})
