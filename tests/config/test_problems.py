"""Everything that is wrong with a file is told at once, each with its place, and with what to write instead."""

from pathlib import Path

import pytest

from mirrorproxy.config import (
    ConfigError,
    load,
)
from tests.config.support import HOME, Write, problems


class TestProblems:
    """Values and keys."""

    def test_all_problems_are_told_at_once_in_the_order_of_the_file(self, write: Write) -> None:
        """Each with file, line and key, and with what to write instead."""
        path = write("""\
servr: {}
listen: 127.0.0.1:1
server:
  listen: ["5000", ":80", "127.0.0.1:70000", "1.2.3:4"]
  tls: {cert: a.crt}
  workers: many
cache:
  max_size: 50 gigs
  max_size: 5GiB
  tag_ttl: 5m
upstreams:
  docker.io:
    tag_tll: 5m
    default: true
  index.docker.io: {default: true}
  foo: {}
  ghcr.io:
    default: true
    negative_ttl: 30
    credentials: {username: a, password_file: nope, passwrd: x}
log: {level: INFO, access: maybe}
fills: 5
""")
        assert problems(path) == [
            "config.yaml:1: servr: unknown key; did you mean server?",
            "config.yaml:2: listen: unknown key; did you mean server.listen?",
            (
                "config.yaml:4: server.listen[0]: '5000' is not an address to listen on; write 127.0.0.1:5000 for this "
                "machine alone, or 0.0.0.0:5000 for all of its addresses"
            ),
            (
                "config.yaml:4: server.listen[1]: ':80' is not an address to listen on; write 127.0.0.1:80 for this "
                "machine alone, or 0.0.0.0:80 for all of its addresses"
            ),
            "config.yaml:4: server.listen[2]: '127.0.0.1:70000': a port lies between 0 and 65535",
            "config.yaml:4: server.listen[3]: '1.2.3:4': '1.2.3' is not an IP address",
            "config.yaml:5: server.tls.key: is missing",
            "config.yaml:6: server.workers: 'many' is not a whole number; write a number from 1 to 256, or auto",
            "config.yaml:8: cache.max_size: '50 gigs' is not a size; write a number of bytes or 50GiB, 500MB, 80%",
            "config.yaml:9: cache.max_size: is given twice, first on line 8; keep one",
            "config.yaml:10: cache.tag_ttl: unknown key; did you mean upstreams.<registry>.tag_ttl?",
            "config.yaml:13: upstreams.docker.io.tag_tll: unknown key; did you mean tag_ttl?",
            "config.yaml:15: upstreams.index.docker.io: is the same registry as docker.io; keep one",
            (
                "config.yaml:16: upstreams.foo: 'foo' could be a repository as well; a registry's name has a dot or a "
                "port in it"
            ),
            (
                "config.yaml:19: upstreams.ghcr.io.negative_ttl: '30' has no unit; write 30s for seconds or 30m for "
                "minutes"
            ),
            "config.yaml:20: upstreams.ghcr.io.credentials.passwrd: unknown key; did you mean password?",
            (
                f"config.yaml:20: upstreams.ghcr.io.credentials.password_file: {path.absolute().parent}/nope cannot be "
                "read: No such file or directory"
            ),
            "config.yaml:21: log.level: 'INFO' is not known here; did you mean info?",
            "config.yaml:21: log.access: 'maybe' is neither true nor false",
            "config.yaml:22: fills: must be a mapping of budget, max_active, max_waiting, max_readers, abandoned",
        ]

    def test_one_mistake_does_not_hide_how_settings_fit_together(self, write: Write) -> None:
        """Beside an unknown key, two defaults and exposed credentials are told too, though they are looked for last."""
        path = write("""\
server: {listen: "0.0.0.0:5000", wrkers: 2}
upstreams:
  docker.io: {default: true, credentials: docker-config}
  ghcr.io: {default: true, tag_ttl: soon}
""")
        assert problems(path) == [
            "config.yaml:1: server.wrkers: unknown key; did you mean workers?",
            (
                "config.yaml:3: upstreams.docker.io.credentials: whoever reaches 0.0.0.0:5000 could pull private "
                "images with these credentials; add repositories: with patterns of what may be served "
                '(["team/*"]), or listen on 127.0.0.1 alone'
            ),
            "config.yaml:4: upstreams.ghcr.io.tag_ttl: 'soon' is not a duration; write 500ms, 30s, 10m, 1h30m or 7d",
            "config.yaml:4: upstreams.ghcr.io.default: docker.io is the default already; only one can be",
        ]

    def test_a_section_given_twice_does_not_hide_what_is_in_it(self, write: Write) -> None:
        """What is wrong with the first is told beside."""
        assert problems(write("cache:\n  max_size: x\ncache: {}\n")) == [
            "config.yaml:2: cache.max_size: 'x' is not a size; write a number of bytes or 50GiB, 500MB, 80%",
            "config.yaml:3: cache: is given twice, first on line 1; keep one",
        ]

    def test_a_mistake_that_is_merged_in_is_told_once(self, write: Write) -> None:
        """Though it is met where it stands and where it is used."""
        path = write("upstreams:\n  docker.io: &common\n    ? [a]\n    : b\n  ghcr.io:\n    <<: *common\n")
        assert problems(path) == ["config.yaml:3: a key must be a plain word"]

    def test_a_registry_is_found_again_under_its_normal_name(self, write: Write) -> None:
        """The line is that of the name as it was written."""
        path = write("upstreams:\n  Registry-1.Docker.IO:\n    tag_ttl: soon\n")
        (problem,) = problems(path)
        assert problem.startswith("config.yaml:3: upstreams.docker.io.tag_ttl: 'soon' is not a duration")

    def test_what_only_follows_from_a_mistake_is_not_told(self, write: Write) -> None:
        """A bad `default` leaves no default, bad patterns leave none, a bad user name no user: one sentence each."""
        path = write("""\
server: {listen: ["0.0.0.0:5000", nowhere]}
upstreams:
  a.example.com: {default: perhaps, credentials: docker-config, endpoints: "http://127.0.0.1:5000"}
  b.example.com: {credentials: docker-config, repositories: ["Team/*"]}
  c.example.com: {credentials: {username: "a:b", password_env: 1}}
""")
        assert problems(path) == [
            (
                "config.yaml:1: server.listen[1]: 'nowhere' is not an address to listen on; write host:port, "
                "[IPv6]:port or unix:/path"
            ),
            "config.yaml:3: upstreams.a.example.com.default: 'perhaps' is neither true nor false",
            (
                "config.yaml:4: upstreams.b.example.com.repositories[0]: 'Team/*' is not a pattern of repositories; "
                "write library/alpine, team/* or **, in lower case"
            ),
            "config.yaml:5: upstreams.c.example.com.credentials.username: may not have a colon in it (RFC 7617)",
            (
                "config.yaml:5: upstreams.c.example.com.credentials.password_env: must be the name of an environment "
                "variable, such as HUB_PASSWORD"
            ),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cache: {max_size: {}}", "1: cache.max_size: must be a single value, not a mapping"),
            ("cache: {max_size: [1]}", "1: cache.max_size: must be a single value, not a list"),
            ("cache: {max_size: ''}", "1: cache.max_size: is empty"),
            ("cache: {max_size: 0%}", "1: cache.max_size: is nothing; a cache needs some room"),
            (
                "cache: {min_free: 5G}",
                "1: cache.min_free: '5G' is not a size; write a number of bytes or 50GiB, 500MB, 80%",
            ),
            ("cache: {Max-Size: 5GB}", "1: cache.Max-Size: unknown key; did you mean max_size?"),
            (
                "cache: [1]",
                "1: cache: must be a mapping of directory, max_size, min_free, high_watermark, low_watermark, verify",
            ),
            ("upstreams: [ghcr.io]", "1: upstreams: must be a mapping of registries, as in `ghcr.io: {}`"),
            (
                "upstreams: {}",
                "1: upstreams: names no registry; name one at least, or leave the key out for the well-known ones",
            ),
            ("upstreams: {ghcr.io: 5}", None),
            (
                "upstreams: {docker.io: {repositories: ['**', alpine, 'a/*']}}",
                (
                    "1: upstreams.docker.io.repositories[1]: alpine matches nothing, as Docker Hub's own images are in "
                    "library/; write library/alpine"
                ),
            ),
            ("upstreams: {ghcr.io: {repositories: 'a?'}}", None),
            ("server: {listen: []}", "1: server.listen: is an empty list; name one at least, or leave the key out"),
            ("server: {listen: [~]}", "1: server.listen[0]: is empty"),
            ("server: {listen: {a: b}}", "1: server.listen: must be a list"),
            ("server: {listen: [a:1, A:1]}", "1: server.listen: a:1 is listed twice; keep one"),
            ("server: {listen: '[::g]:1'}", "1: server.listen[0]: '[::g]:1': '[::g]' is not an IP address"),
            ("server: {listen: 'a b:1'}", None),
            (
                "server: {listen: 'unix:'}",
                "1: server.listen[0]: 'unix:' needs a path, as in unix:/run/mirrorproxy.sock",
            ),
            ("server: {workers: 0}", "1: server.workers: 0 is out of range; write a number from 1 to 256, or auto"),
            ("server: {workers: '-1'}", "1: server.workers: -1 is out of range; write a number from 1 to 256, or auto"),
            ("server: {workers: 1.5}", None),
            ("server: {write_timeout: 0s}", "1: server.write_timeout: must be longer than 0s"),
            ("server: {tls: tls.crt}", "1: server.tls: must be a mapping of cert, key"),
            (
                "fills: {max_active: ten}",
                "1: fills.max_active: 'ten' is not a whole number; write a number from 1 to 10000",
            ),
            (
                "fills: {abandoned: leave}",
                "1: fills.abandoned: 'leave' is not known here; write finish, stop or {linger: 60s}",
            ),
            (
                "fills: {abandoned: '{linger: 60s'}",
                "1: fills.abandoned: '{linger: 60s' is not known here; write finish, stop or {linger: 60s}",
            ),
            ("fills: {abandoned: {linger: 5m, stop: 1m}}", None),
            ("fills: {abandoned: {lingre: 5m}}", "1: fills.abandoned: must be finish, stop or {linger: 60s}"),
            ("fills: {abandoned: {linger: }}", "1: fills.abandoned: must be finish, stop or {linger: 60s}"),
            (
                "fills: {abandoned: {linger: 60}}",
                "1: fills.abandoned: '60' has no unit; write 60s for seconds or 60m for minutes",
            ),
            (
                "fills: {abandoned: linger 0s}",
                "1: fills.abandoned: to linger for 0s is to stop; write stop, or a longer time",
            ),
            ("fills: {abandoned: [stop]}", "1: fills.abandoned: must be a single value, not a list"),
            ("partials: {keep: 0s}", "1: partials.keep: must be longer than 0s"),
            ("partials: 7d", "1: partials: must be a mapping of keep, max_count"),
            ("scrub: 7d", "1: scrub: must be a mapping of every, rate"),
            ("scrub: {every: 7}", "1: scrub.every: '7' has no unit; write 7s for seconds or 7m for minutes"),
            ("scrub: {rate: 0}", "1: scrub.rate: '0' is not a rate; write bytes per second as 50MB/s or 4MiB/s"),
            ("scrub: {rate: 1kB/s}", "1: scrub.rate: 1kB/s would take for ever; write 100kB/s or more"),
            ("cache: {verify: always}", "1: cache.verify: 'always' is not known here; write off or on-read"),
            ("upstreams: {a.io: {connections: 0}}", None),
            (
                "upstreams: {a.io: {connections: 17}}",
                "1: upstreams.a.io.connections: 17 is out of range; write a number from 1 to 16",
            ),
            (
                "upstreams: {a.io: {max_fills: many}}",
                "1: upstreams.a.io.max_fills: 'many' is not a whole number; write a number from 1 to 10000",
            ),
            (
                "upstreams: {a.io: {parallel_from: 1023KiB}}",
                "1: upstreams.a.io.parallel_from: 1023KiB is too small to share; write 1MiB or more",
            ),
            ("upstreams: {a.io: {parallel_from: 80%}}", None),
            (
                "upstreams: {a.io: {min_rate: 10kB}}",
                "1: upstreams.a.io.min_rate: '10kB' is not a rate; write bytes per second as 50MB/s or 4MiB/s",
            ),
            (
                "upstreams: {a.io: {min_rate: 1GiB/s}}",
                (
                    "1: upstreams.a.io.min_rate: 1GiB/s is more than a connection brings, so that each would be made "
                    "anew for ever; write 1GB/s or less, or 0 for none"
                ),
            ),
            (
                "upstreams: {a.io: {prefetch: yes}}",
                "1: upstreams.a.io.prefetch: 'yes' is not known here; write auto, all or off",
            ),
            ("log: {format: xml}", "1: log.format: 'xml' is not known here; write auto, json or text"),
            ("[a, b]", "1: must be a mapping of settings, such as `cache: {max_size: 50GiB}`"),
            ("just text", "1: must be a mapping of settings, such as `cache: {max_size: 50GiB}`"),
            ("? [a]\n: b", "1: a key must be a plain word"),
            ("cache: {max_size: !x 5}", None),
            (
                'cache: {directory: "a\\0b"}',
                "1: cache.directory: has a line break, or another character that cannot be printed, in it",
            ),
        ],
    )
    def test_each_mistake_has_its_words(self, write: Write, text: str, message: str | None) -> None:
        """One problem for one mistake, never in pydantic's own words, which speak of inputs and instances."""
        (problem,) = problems(write(text))
        assert message is None or problem == f"config.yaml:{message}"
        assert problem.startswith("config.yaml:1: ")
        assert "nput should" not in problem
        assert "nstance" not in problem

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: b: c", "1: is not YAML, column 5: mapping values are not allowed here; is the indentation right"),
            ("cache:\n\tmax_size: 1", "2: is not YAML, column 1: .* YAML is indented with spaces, not with tabs"),
            ("server: [a\nlog: {}", "2: is not YAML, column 4: .* are all brackets and quotes closed"),
            ("log: *x", "1: is not YAML, column 6: found undefined alias; put quotes round a text that begins with"),
            ("log: {}\n---\nlog: {}", "2: is not YAML, column 1: .*one document"),
            ("a: @b", "1: is not YAML, column 4: .*put quotes round a text that begins with this character"),
            ('a: "\\UFFFFFFFF"', " is not YAML: an escape"),
            ("log: {}\nx: \x07", "2: has the character U\\+0007, which YAML does not allow"),
            ("[" * 3000, " is nested too deeply"),
            ("a: &a [*a]", " is nested too deeply, or its aliases"),
            ("a: &a [*a, *a]", " is nested too deeply, or its aliases"),
            (
                "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)),
                "has more than 20000 values",
            ),
            ("#" * 2**20 + "\n", " is larger than 1048576 bytes: is this the right file"),
        ],
    )
    def test_what_is_no_yaml_is_told_with_line_and_column(self, write: Write, text: str, message: str) -> None:
        """With a hint for the common slips; documents that would take all memory or stack are refused in time."""
        with pytest.raises(ConfigError, match=f"^config.yaml:.*{message}"):
            load(write(text), HOME)

    def test_a_file_that_cannot_be_read_is_a_problem(self, write: Write, tmp_path: Path) -> None:
        """Not there, a folder, no text."""
        assert problems(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: cannot be read: No such file or directory"]
        assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
        path = write("")
        path.write_bytes(b"log: {}\n# \xff\n")
        assert problems(path) == ["config.yaml:2: is not UTF-8 text"]
