#!/bin/sh
# Create the virtual environment $1 from the first Python that is new enough.
set -eu

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    new_enough "$python" && break
    python=
done
if [ -z "$python" ]; then
    echo "Cutaway needs Python 3.11 or newer; \`${PYTHON:-python3}\` is $(${PYTHON:-python3} --version 2>&1 || true)." >&2
    echo "Install one, or name one: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi

# Debian keeps the module that puts pip into an environment in a package of its own.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "==> installing python3-venv"
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    else
        echo "$python cannot create virtual environments: install python3-venv (Debian, Ubuntu) first." >&2
        exit 1
    fi
fi

echo "==> creating $1 with $("$python" --version)"
"$python" -m venv "$1"
