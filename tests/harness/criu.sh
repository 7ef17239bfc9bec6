#!/bin/sh
# Unpack CRIU of Debian's next release beside the system, and print the folder that has `criu` in it.
#
# Debian 12's own CRIU 3.17 fails on newer kernels (vDSO). The newer one needs the newer libc, so its
# libraries are unpacked too and it is started through their loader. Nothing is installed.
# usage: criu.sh [FOLDER]    (default: .cache/criu in the repository)
set -eu
suite=trixie
cache=${1:-$(cd "$(dirname "$0")/../.." && pwd)/.cache/criu}
if [ ! -x "$cache/bin/criu" ]; then
    mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/*debian* 2>/dev/null | grep /debian | head -n 1)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/tree"
    touch "$work/status"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys trusted=yes] $mirror $suite main" > "$work/sources.list"
    private() {
        apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" \
            -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
            -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" \
            -o APT::Sandbox::User=root "$@"
    }
    private update >&2
    private install --yes --no-install-recommends --download-only criu >&2
    for package in "$work"/archives/*.deb; do
        dpkg-deb -x "$package" "$work/tree"
    done
    mkdir -p "$cache/bin"
    rm -rf "$cache/tree"
    mv "$work/tree" "$cache/tree"
    loader=$(cd "$cache/tree" && find . -name 'ld-linux-*.so.*' | head -n 1)
    program=$(cd "$cache/tree" && find . -path '*bin/criu' | head -n 1)
    libraries=$(cd "$cache/tree" && find . -name 'lib*.so*' -printf "$cache/tree/%h\n" | sort -u | tr '\n' ':')
    cat > "$cache/bin/criu" <<SCRIPT
#!/bin/sh
exec "$cache/tree/$loader" --library-path "$libraries" "$cache/tree/$program" "\$@"
SCRIPT
    chmod +x "$cache/bin/criu"
fi
echo "$cache/bin"
