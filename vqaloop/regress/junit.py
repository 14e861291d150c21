"""A comparison of two builds as JUnit XML, as Jenkins, GitLab and others read it.

There is no standard; what is written is valid against both schemas in wide use: junit-10.xsd of
Jenkins' xunit plugin, and the JUnit.xsd of Windy Road for Apache Ant, which is the stricter one.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from vqaloop.core.text import printable
from vqaloop.regress.verdict import STEPS

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 (section 2.2) cannot represent."""


def junit_xml(document: Mapping[str, Any]) -> bytes:
    """One suite; a case for each check of a clip, or of the mean over all clips."""
    suite = ET.Element("testsuite")
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(document).items():
        ET.SubElement(properties, "property", name=name, value=_text(value))
    for check in document["checks"]:
        _add_case(suite, document, check)
    if document["verdict"] == "cannot tell":
        # a job that fails should show a case that says why
        case = ET.SubElement(
            suite, "testcase", classname="all clips", name="verdict", time="0.000"
        )
        why = _text(document["summary"])
        ET.SubElement(case, "error", type="cannot tell", message=why).text = why
    ET.SubElement(suite, "system-out").text = _text(document["summary"])
    ET.SubElement(suite, "system-err").text = "\n".join(map(_text, document["reasons"]))
    suite.attrib |= {
        "name": _text(f"vqaloop regress {document['codec']}"),
        "package": "vqaloop",
        "id": "0",
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": str(len(suite.findall("testcase/error"))),
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": _seconds(document["cost"].get("wall_s")),
        # Ant's schema wants neither a zone nor parts of seconds
        "timestamp": document["when"][:19],
        "hostname": "localhost",
    }
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _text(value: Any) -> str:
    """A value on one line, without the characters that XML cannot represent."""
    return printable(NOT_XML.sub("", str(value)))


def _seconds(value: float | None) -> str:
    return f"{value or 0.0:.3f}"


def _properties(document: Mapping[str, Any]) -> dict[str, Any]:
    """What was compared, in the order people look for it."""
    found: dict[str, Any] = {"vqaloop": document["vqaloop"]}
    for build in ("baseline", "candidate"):
        about = document[build] or {"args": []}
        found |= {
            f"{build}.{key}": about.get(key) for key in ("name", "kind", "version", "sha256")
        }
        found[f"{build}.args"] = " ".join(about["args"])
    for key in ("codec", "encoder", "preset", "threshold_percent"):
        found[key] = document[key]
    found |= {f"metric.{key}": value for key, value in document["metric"].items()}
    for key in ("bd_rate_percent", "noise_floor_percent", "verdict"):
        found[key] = document[key]
    return {key: value for key, value in found.items() if value not in (None, "")}


def _add_case(suite: ET.Element, document: Mapping[str, Any], check: Mapping[str, Any]) -> None:
    name, status = check["check"], check["status"]
    clips = [clip for clip in document["clips"] if clip["clip"] == check["clip"]]
    # the time of a clip is counted in one of its cases only
    runs = [run for clip in clips for run in clip["runs"]] if name == "encode" else []
    case = ET.SubElement(
        suite,
        "testcase",
        classname=_text(check["clip"]),
        name=_text(name),
        time=_seconds(sum(run["wall_s"] or 0.0 for run in runs)),
    )
    if status == "skipped":
        ET.SubElement(case, "skipped", message=_text(check["message"]))
    if status == "failed":
        failures = [
            failure
            for clip in clips
            # the candidate's first: it is the one on trial
            for failure in sorted(clip["failures"], key=lambda f: f["build"] == "baseline")
            if failure["kind"] in STEPS.get(name, ())
        ]
        kind = failures[0]["kind"] if failures else check["kind"]
        failed = ET.SubElement(case, "failure", type=kind, message=_text(check["message"]))
        failed.text = "\n".join(map(_failure_line, failures)) or _text(check["message"])


def _failure_line(failure: Mapping[str, Any]) -> str:
    where = f"{failure['width']}x{failure['height']} at {failure['point']}"
    return _text(f"{failure['build']}, {where}: {failure['kind']}: {failure['message']}")
