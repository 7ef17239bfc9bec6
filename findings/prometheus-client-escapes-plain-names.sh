#!/bin/sh
# prometheus_client 0.26.0, asked for OpenMetrics or for text by a scraper whose Accept wants names escaped as "values", or
# as "dots".
#
# Guess: as "values" only a name that has something else than letters, digits, "_" and ":" is changed, in either format;
# and in whichever way a name is changed, it is so in its TYPE and its samples, so that they are one metric.
# Seen: in text that is so as "values". In OpenMetrics names that need nothing are left in TYPE, and changed in samples:
# "# TYPE temp_c gauge" with "U__temp__c 0.0", which the library's own parser reads as a metric without samples
# and one of an unknown type. As "dots" the "_" that a suffix begins with is doubled with the rest, in either
# format: "# TYPE took summary" with "took__count". Names with a dot alone come out right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from prometheus_client import CollectorRegistry, Gauge, Summary
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

registry = CollectorRegistry()
Gauge("temp_c", "Plain.", registry=registry)
Gauge("temp.c", "With a dot.", registry=registry)
Summary("took", "With suffixes.", registry=registry)


def lines(kind, escaping):
    """What it answers: all of it, and the names of each metric's samples by the one in its TYPE."""
    encode, content_type = choose_encoder(f"{kind};version=1.0.0;escaping={escaping}")
    assert f"escaping={escaping}" in content_type
    text = encode(registry).decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            samples = found[line.split()[2]] = []
        elif not line.startswith("#") and "created" not in line:
            samples.append(line.split()[0])
    return text, found


TEXT, OPEN = "text/plain", "application/openmetrics-text"
found = {}
for kind in (TEXT, OPEN):
    for escaping in ("values", "dots"):
        _, names = lines(kind, escaping)
        for name, samples in names.items():
            if samples:
                found[kind, escaping, name] = samples
                print(f"{kind}, {escaping}: TYPE {name}, samples {', '.join(samples)}")
parsed = text_string_to_metric_families(lines(OPEN, "values")[0])
parsed = [(each.name, each.type, len(each.samples)) for each in parsed if "temp" in each.name]
print("parsed:", *parsed)
sys.exit(
    not (
        found[TEXT, "values", "temp_c"] == ["temp_c"]
        and found[OPEN, "values", "temp_c"] == ["U__temp__c"]
        and found[OPEN, "values", "took"] == ["U__took__count", "U__took__sum"]
        and all(found[kind, "values", "U__temp_2e_c"] == ["U__temp_2e_c"] for kind in (TEXT, OPEN))
        and all(found[kind, "dots", "took"] == ["took__count", "took__sum"] for kind in (TEXT, OPEN))
        and parsed == [("temp_c", "gauge", 0), ("U__temp__c", "unknown", 1), ("U__temp_2e_c", "gauge", 1)]
    )
)
PYTHON
