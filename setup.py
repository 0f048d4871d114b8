"""The distribution `pvemu`: pure Python, nothing to compile."""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DOCS = ["sphinx>=7.2", "myst-parser>=2.0", "furo>=2023.9", "sphinx-click>=5.0"]


class Build(build_py):
    """Takes in the terminal of `emu serve`, which is not among the sources."""

    def run(self):
        super().run()
        if self.editable_mode:
            return                      # `emu serve` fetches it
        sys.path.insert(0, str(HERE))
        from emu.errors import EmuError
        from emu.serve.npm import build

        try:
            build(Path(self.build_lib, "emu", "serve", "xterm"))
        except EmuError as error:
            self.warn(f"{error}; `emu serve` will try again when it is first used")


setup(
    name="pvemu",
    version="0.1.0",
    description="A pure-Python x86-64 machine that boots unmodified Linux",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="GPL-2.0-or-later",
    license_files=["LICENSE"],
    package_dir={"": "."},              # said, so that an editable install is a line in a .pth file, and no import hook
    packages=find_packages(include=["emu", "emu.*", "devices", "devices.*", "hypercalls", "hypercalls.*"]),
    package_data={
        "emu": ["py.typed", "images/*.sh", "images/*.lst", "cpu/*.lst", "serve/page/*"],
        "devices": ["py.typed"],
        "hypercalls": ["py.typed"],
    },
    cmdclass={"build_py": Build},
    python_requires=">=3.11",
    install_requires=[
        "unicorn==2.1.4",   # its private layout is part of the CPU layer
        "cffi>=1.15",
        "click>=8.1",
        "rich>=13",
        "pyelftools>=0.29",
        "lz4>=4.0",
        "zstandard>=0.20",
        "capstone>=5.0,<6",
    ],
    extras_require={
        "plot": ["matplotlib>=3.7"],
        "cluster": ["distributed>=2023.5"],
        "serve": ["aiohttp>=3.9"],
        "test": [
            "pytest>=7.4", "hypothesis>=6.80", "pytest-benchmark>=4.0", "pytest-timeout>=2.1", "pytest-xdist>=3.3",
            "matplotlib>=3.7", "distributed>=2023.5", "aiohttp>=3.9", "selenium>=4.12", *DOCS,
        ],
        "docs": DOCS,
        "lint": ["ruff>=0.4", "mypy>=1.8"],
    },
    entry_points={"console_scripts": ["emu=emu.__main__:run"], "pytest11": ["emu.pytest_plugin=emu.pytest_plugin"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: System :: Emulators",
        "Typing :: Typed",
    ],
)
