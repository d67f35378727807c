"""Whatever is written, it is settings or problems."""

import json
from pathlib import Path

from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mirrorproxy.config import (
    ConfigError,
    load,
)
from mirrorproxy.config.sources import VARIABLES
from tests.config.support import HOME, Write


class TestAnything:
    """Texts and values made up by hypothesis."""

    @hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(text=st.text(max_size=80) | st.text(alphabet="{}[]:,-?!&*#|>'\"%@` \n\tab0~<=\\U.", max_size=60))
    @example("%YAML 1.99999999999999999999999999\n---\n")
    @example('"\\ud800": 1')
    @example("? ? a\n")
    def test_any_text_is_settings_or_problems(self, write: Write, text: str) -> None:
        """Never another exception, and never a problem of two lines."""
        path = write("")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        self._loads_or_tells(path)

    _scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.sampled_from(
            [
                "5m",
                "80%",
                "50GiB",
                "auto",
                "docker-config",
                "127.0.0.1:5000",
                "http://a:5000",
                "http://a@b",
                "/",
                "~/x",
                "unix:/x",
                "10kB/s",
                "stop",
                "linger: 5m",
            ]
        )
    )
    _names = st.text(max_size=5) | st.sampled_from(
        [
            *sorted({part.lower() for name in VARIABLES for part in name.split("__")[1:]}),
            "docker.io",
            "index.docker.io",
            "ghcr.io",
            "endpoints",
            "credentials",
            "username",
            "password",
            "password_env",
            "password_file",
            "docker_config",
            "tls",
            "cert",
            "default",
            "repositories",
            "tag_ttl",
            "proxy",
            "token_realms",
            "linger",
            "max_connections",
            "connections",
            "parallel_from",
            "min_rate",
            "max_fills",
            "prefetch",
            "idle_timeout",
            "header_timeout",
        ]
    )
    _values = st.recursive(
        _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.nothing(), inner), max_leaves=8
    )

    @hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        tree=st.dictionaries(
            _names,
            _scalars
            | st.dictionaries(_names, _values | st.dictionaries(_names, _values | st.dictionaries(_names, _scalars))),
        ),
        upstreams=st.none()
        | _values
        | st.dictionaries(_names, st.dictionaries(_names, _values | st.dictionaries(_names, _values))),
    )
    def test_any_values_are_settings_or_problems(
        self, write: Write, tree: dict[str, object], upstreams: object
    ) -> None:
        """The same for known keys with values of any shape, from a file and from a variable."""
        self._loads_or_tells(write(json.dumps(tree | {"upstreams": upstreams})))
        self._loads_or_tells(None, {"MIRRORPROXY__UPSTREAMS": json.dumps(upstreams)})

    @staticmethod
    def _loads_or_tells(path: Path | None, environ: dict[str, str] | None = None) -> None:
        found = []
        try:
            loaded = load(path, HOME | (environ or {}))
        except ConfigError as error:
            found = error.problems
            assert found
        else:
            assert sum(upstream.default for upstream in loaded.settings.upstreams.values()) == 1
        for problem in found:
            assert len(str(problem).splitlines()) == 1
            assert "nput should" not in problem.message
