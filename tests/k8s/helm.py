"""Helm itself, run by the Python of .venv/tools: values in, what the chart comes to out, as JSON.

Standard input: a list of values. Standard output: `lint`, Helm's messages, and `rendered`, for each values the files or
the error.
"""

import json
import sys
from pathlib import Path

from helm_python import Chart, HelmError
from helm_python.chart import lint

CHART = Path(__file__).resolve().parent.parent.parent / "charts" / "mirrorproxy"


def main() -> None:
    """Render the chart once for each of the values."""
    rendered = []
    with Chart.load(CHART) as chart:
        for values in json.load(sys.stdin):
            try:
                chart.validate_schema(values)
                rendered.append(chart.render(values, name="mirrorproxy", namespace="mirrorproxy"))
            except HelmError as error:
                rendered.append({"error": str(error)})
    json.dump({"lint": lint(CHART, strict=True, namespace="mirrorproxy"), "rendered": rendered}, sys.stdout)


main()
