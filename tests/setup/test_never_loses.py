"""Whatever others do in between, `mirrorproxy setup containerd` loses nothing of theirs and leaves nothing behind."""

import itertools
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mirrorproxy.setup import DEFAULT, Mirror, Refused, apply, folder_of, is_ours, plan_removal, plan_setup
from mirrorproxy.setup.hosts import is_edited

REGISTRIES = [DEFAULT, "r.example.com:5000"]
registries = st.sets(st.sampled_from(REGISTRIES), min_size=1)
mirrors = st.sampled_from([Mirror("http://127.0.0.1:5000"), Mirror("http://10.0.0.1:30500", fallback=False)])


class Directory(RuleBasedStateMachine):
    """A directory that mirrorproxy and others write in. `theirs`: what others left at a place, and nobody took away."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name)
        self.theirs: dict[str, str] = {}
        self.texts: set[str] = set()
        self.numbers = itertools.count()

    def teardown(self) -> None:
        self.folder.cleanup()

    def path(self, registry: str) -> Path:
        """Of the registry's file."""
        return self.directory / folder_of(registry) / "hosts.toml"

    @rule(named=registries, mirror=mirrors, replace=st.sampled_from([True, True, False]))
    def set_up(self, named: set[str], mirror: Mirror, replace: bool) -> None:
        """All of it or, where it refuses, nothing at all; and only where it may not replace."""
        before = self.files()
        try:
            for change in plan_setup(self.directory, named, mirror, replace=replace):
                apply(change)
        except Refused:
            assert not replace
            assert self.files() == before
            return
        for registry in REGISTRIES:
            path = self.path(registry)
            assert (path.exists() and is_ours(path.read_text())) == (registry in named)
        assert plan_setup(self.directory, named, mirror) == []

    @rule(registry=st.sampled_from(REGISTRIES))
    def somebody_writes(self, registry: str) -> None:
        """A file of their own, over whatever is there: of what was theirs there, they take leave themselves."""
        path = self.path(registry)
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            self.texts.discard(path.read_text())
        text = f"# {next(self.numbers)}\n"
        path.write_text(text)
        self.theirs[registry] = text
        self.texts.add(text)

    @rule(registry=st.sampled_from(REGISTRIES))
    def somebody_edits(self, registry: str) -> None:
        """Ours, as it is there."""
        path = self.path(registry)
        if path.exists() and is_ours(path.read_text()):
            path.write_text(f"{path.read_text()}# {next(self.numbers)}\n")
            self.texts.add(path.read_text())

    @rule()
    def remove(self) -> None:
        """What others had at a place last is there again, unless they edited ours since."""
        for change in plan_removal(self.directory):
            apply(change)
        for registry in REGISTRIES:
            path = self.path(registry)
            present = path.read_text() if path.exists() else None
            assert present is None or not is_ours(present)
            if not (present and is_edited(present)):
                assert present == self.theirs.get(registry)

    def files(self) -> dict[Path, str]:
        """All that is there."""
        return {path: path.read_text() for path in self.directory.rglob("*") if path.is_file()}

    @invariant()
    def nothing_is_lost(self) -> None:
        """Of what others wrote and did not write over themselves; and no half-written file is left."""
        present = self.files()
        assert self.texts <= set(present.values())
        assert not [path for path in present if path.name.startswith(".")]


Directory.TestCase.settings = settings(max_examples=40, stateful_step_count=10, deadline=None)
TestDirectory = Directory.TestCase
