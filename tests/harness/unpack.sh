#!/bin/sh
# Unpack a package of another Debian suite into a folder, leaving the system alone.
# usage: unpack.sh [--with-libraries] SUITE PACKAGE TREE
#
# With its libraries, a program that needs a newer libc can be started through their loader.
set -eu
what=
[ "$1" = --with-libraries ] && what=all && shift
suite=$1 package=$2 tree=$3
[ -e "$tree" ] && exit
mirror=$("$(dirname "$0")/../../.ci/mirror")
mkdir -p "$(dirname "$tree")"
tree=$(cd "$(dirname "$tree")" && pwd)/$(basename "$tree")
exec 9> "$tree.lock" # several may want it at once
flock 9
[ -e "$tree" ] && exit
work=$(mktemp -d "$tree.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/tree"
touch "$work/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys trusted=yes] $mirror $suite main" > "$work/sources.list"
private() {
    apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}
private update >&2
if [ "$what" ]; then
    private install --yes --no-install-recommends --download-only "$package" >&2
else
    (cd "$work/archives" && private download "$package" >&2)
fi
for file in "$work"/archives/*.deb; do
    dpkg-deb -x "$file" "$work/tree"
done
mv "$work/tree" "$tree"
