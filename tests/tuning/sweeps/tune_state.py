"""What Tune has written down of a sweep, which is what a resumed one begins from."""

import json
import time
from contextlib import suppress


def ended(folder, iterations):
    """Trial -> its records, of the trials in Tune's folder that have all of theirs and that its newest state calls ended."""
    found = {}
    with suppress(FileNotFoundError, IndexError, json.JSONDecodeError):  # nothing is there yet, or it is being written
        newest = sorted(folder.glob("experiment_state-*.json"))[-1]
        trials = [json.loads(row) for row, _ in json.loads(newest.read_text())["trial_data"]]
        for name in (trial["custom_dirname"] for trial in trials if trial["status"] == "TERMINATED"):
            lines = (folder / name / "result.json").read_text().splitlines()
            if len(records := [json.loads(line) for line in lines if line]) == iterations:
                found[name] = records
    return found


def wait_for_a_trial(process, folder, iterations, limit_s=600):
    """The trials that have ended (see ``ended``) as soon as there is one, or the process has ended, or time is up."""
    until = time.monotonic() + limit_s
    while not (found := ended(folder, iterations)) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    return found
