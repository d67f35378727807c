"""How the settings of downloads fit together, and what downloads are handed of them."""

import pytest

from mirrorproxy.config import dump, load
from mirrorproxy.fill import Limits, Terms
from mirrorproxy.service.stack import terms
from tests.config.support import HOME, Write, problems


class TestConnections:
    """`connections` and `max_fills` within `max_connections`."""

    def test_the_defaults_follow_max_connections(self, write: Write) -> None:
        """Who writes a small `max_connections` need not write the others; who writes one of them keeps it."""
        path = write("""
upstreams:
  a.io: {max_connections: 3}
  b.io: {max_connections: 12, connections: 8}
  c.io: {default: true}
""")
        loaded = load(path, HOME)
        found = {
            name: (upstream.connections, upstream.max_fills) for name, upstream in loaded.settings.upstreams.items()
        }
        assert found == {"a.io": (3, 3), "b.io": (8, 12), "c.io": (4, 16)}
        assert loaded.warnings == []

    def test_more_for_one_download_than_there_are_is_refused(self, write: Write) -> None:
        """Only what was written, and with what to write instead."""
        path = write("upstreams:\n  a.io:\n    max_connections: 3\n    connections: 4\n")
        assert problems(path) == [
            (
                "config.yaml:4: upstreams.a.io.connections: 4 for one download are more than max_connections "
                "(3); write 3 or less, or raise max_connections"
            ),
        ]

    def test_more_downloads_than_connections_get_a_warning(self, write: Write) -> None:
        """They take turns: nothing fails for it."""
        loaded = load(write("upstreams:\n  a.io:\n    max_connections: 3\n    max_fills: 4\n"), HOME)
        assert [str(warning) for warning in loaded.warnings] == [
            (
                "config.yaml:4: upstreams.a.io.max_fills: 4 downloads at a time are more than max_connections "
                "(3), so that some wait; write 3 or less, or raise max_connections"
            ),
        ]
        assert loaded.settings.upstreams["a.io"].max_fills == 4

    def test_more_downloads_of_one_registry_than_of_all_are_no_matter(self, write: Write) -> None:
        """The smaller number counts."""
        assert load(write("fills: {max_active: 2}"), HOME).warnings == []


class TestOwnPorts:
    """`server.metrics_listen` beside `server.listen`."""

    def test_one_address_for_both_is_refused(self, write: Write) -> None:
        """Any free port is two ports, and a list may be left out."""
        path = write('server:\n  listen: ["127.0.0.1:0", "127.0.0.1:9"]\n  metrics_listen: 127.0.0.1:9\n')
        assert problems(path) == [
            (
                "config.yaml:3: server.metrics_listen[0]: 127.0.0.1:9 is in server.listen too; give the metrics a port "
                "of their own"
            ),
        ]
        loaded = load(write('server:\n  listen: ["127.0.0.1:0"]\n  metrics_listen: ["127.0.0.1:0"]\n'), HOME)
        assert [str(address) for address in loaded.settings.server.metrics_listen] == ["127.0.0.1:0"]

    def test_an_endpoint_there_is_refused(self, write: Write) -> None:
        """The service would ask itself."""
        path = write(
            "server: {metrics_listen: 127.0.0.1:9}\nupstreams:\n  a.io:\n    endpoints: [http://127.0.0.1:9]\n"
        )
        assert ["listens on itself" in problem for problem in problems(path)] == [True]


class TestTimeouts:
    """`fills.budget` against the timeouts of the upstreams, and those against each other."""

    def test_a_budget_that_ends_before_a_stall_is_noticed_is_refused(self, write: Write) -> None:
        """Once, with the budget, where all upstreams have the default."""
        assert problems(write("fills: {budget: 30s}")) == [
            (
                "config.yaml:1: fills.budget: 30s is not longer than idle_timeout (30s): a connection that "
                "stalls would end a download before it is tried again; write more, or lower idle_timeout"
            ),
            (
                "config.yaml:1: fills.budget: 30s is not longer than header_timeout (30s): an endpoint that does "
                "not answer would end a download before it is tried again; write more, or lower header_timeout"
            ),
        ]
        assert load(write("fills: {budget: 31s}"), HOME).warnings == []

    @pytest.mark.parametrize(
        ("timeout", "trouble"),
        [("idle_timeout", "a connection that stalls"), ("header_timeout", "an endpoint that does not answer")],
    )
    def test_a_timeout_as_long_as_the_budget_is_refused(self, write: Write, timeout: str, trouble: str) -> None:
        """Where it was written; it need not be the budget that is unusual."""
        assert problems(write(f"upstreams:\n  a.io: {{default: true}}\n  b.io:\n    {timeout}: 10m\n")) == [
            (
                f"config.yaml:4: upstreams.b.io.{timeout}: 10m is not shorter than fills.budget (10m): {trouble} "
                "would end a download before it is tried again; lower it, or raise fills.budget"
            ),
        ]
        load(write(f"upstreams: {{b.io: {{{timeout}: 10m}}}}\nfills: {{budget: 11m}}"), HOME)

    def test_nothing_is_said_of_what_is_wrong_already(self, write: Write) -> None:
        """A default in the place of a mistake is nobody's wish."""
        path = write("fills: {budget: 5}\nupstreams: {a.io: {idle_timeout: 15m}}")
        assert [problem.split(":")[2] for problem in problems(path)] == [" fills.budget"]
        path = write("upstreams:\n  a.io: {idle_timeout: 1, header_timeout: 2}\nfills: {budget: 20s}")
        assert [problem.split(":")[2] for problem in problems(path)] == [
            " upstreams.a.io.idle_timeout",
            " upstreams.a.io.header_timeout",
        ]

    def test_a_timeout_that_counts_within_a_shorter_one_gets_a_warning(self, write: Write) -> None:
        """If it was written: the default of the one is no reason to write the other."""
        path = write("upstreams: {a.io: {header_timeout: 3s, connect_timeout: 4s,\n revalidate_timeout: 1m}}")
        assert [str(warning) for warning in load(path, HOME).warnings] == [
            (
                "config.yaml:1: upstreams.a.io.connect_timeout: 4s is longer than header_timeout (3s), in which "
                "connecting counts; lower it"
            ),
            (
                "config.yaml:2: upstreams.a.io.revalidate_timeout: 1m is longer than header_timeout (3s): while "
                "upstream hangs, clients wait that long for what is here; lower it"
            ),
        ]
        assert load(write("upstreams: {a.io: {header_timeout: 3s}}"), HOME).warnings == []


class TestTerms:
    """What downloads are handed."""

    def test_downloads_get_what_was_written(self, write: Write) -> None:
        """Each registry's limits are its own; one that a reload took away has the defaults to its end."""
        made = terms(
            load(
                write("""
upstreams:
  a.io: {connections: 2, parallel_from: 1MiB, min_rate: 1kB/s, max_fills: 5, idle_timeout: 7s}
fills: {budget: 20m, max_active: 9, max_waiting: 8, max_readers: 7, abandoned: {linger: 5s}}
"""),
                HOME,
            ).settings
        )
        assert (made.budget, made.max_active, made.abandoned) == (1200.0, 9, 5.0)
        assert (made.max_waiting, made.max_readers) == (8, 7)
        assert made.upstream("a.io") == Limits(5, 2, 2**20, 1000, 7.0)
        assert made.upstream("gone.io") == Limits()

    def test_the_defaults_are_those_of_downloads(self) -> None:
        """Two places have them: a test that makes downloads by itself tries what a service does."""
        made = terms(load(None, HOME).settings)
        assert made.upstream("docker.io") == Limits()
        assert (made.budget, made.max_active, made.abandoned) == (600.0, 64, None)
        assert (made.max_waiting, made.max_readers) == (Terms().max_waiting, Terms().max_readers)

    def test_show_writes_them_as_a_file_has_them(self, write: Write) -> None:
        """With units, and what to do with abandoned downloads as the mapping."""
        shown = dump(
            load(write("upstreams: {a.io: {min_rate: 10kB/s}}\nfills: {abandoned: linger 90s}"), HOME).settings
        )
        numbers = {"max_active": 64, "max_waiting": 1024, "max_readers": 10_000}
        assert shown["fills"] == {"budget": "10m", **numbers, "abandoned": {"linger": "1m30s"}}
        assert shown["partials"] == {"keep": "7d", "max_count": 1000}
        assert shown["upstreams"]["a.io"]["min_rate"] == "10kB/s"
        assert shown["upstreams"]["a.io"]["parallel_from"] == "16MiB"
