#!/bin/sh
# The studio's tests drive a headless Chromium. Install Debian's where that is possible, otherwise say what is missing.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> installing Chromium for the studio's tests"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 && exit 0
fi
echo "==> no Chromium here: install it to run the studio's tests in a browser"
