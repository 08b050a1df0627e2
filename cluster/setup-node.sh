#!/usr/bin/env bash
# Installs the project that this file is part of on a node: a virtual environment of its own, .venv beside setup.cfg, with the
# versions of constraints.txt, first on the PATH of the user's shells (Ray runs what it runs on a node in a login shell). The
# sources are used where they are, so a new copy of them needs nothing more. Done again it does only what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usable='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'
stamp=.venv/.node
wanted=$(cat setup.cfg pyproject.toml constraints.txt | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
	python=
	for candidate in python3.11 python3.12 python3.13 python3; do
		if "$candidate" -c "$usable" >/dev/null 2>&1; then python=$candidate && break; fi
	done
	if [ -z "$python" ]; then
		echo "edgeroute needs Python 3.11 or later with venv (Debian, Ubuntu: apt-get install python3 python3-venv)" >&2
		exit 1
	fi
	# The stamp goes first and comes back last: an interrupted installation is done again.
	rm -f "$stamp"
	"$python" -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e .
	echo "$wanted" >"$stamp"
fi

line="export PATH=\"$PWD/.venv/bin:\$PATH\""
grep -qsxF "$line" ~/.bashrc || echo "$line" >>~/.bashrc
