#!/bin/sh
# Unpack CRIU of Debian's next release beside the system, and print the folder that has `criu` in it.
#
# Debian 12's own CRIU 3.17 fails on newer kernels (vDSO). The newer one needs the newer libc, so its
# libraries are unpacked too and it is started through their loader. Nothing is installed.
# usage: criu.sh [FOLDER]    (default: .cache/criu in the repository)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${1:-$(cd "$here/../.." && pwd)/.cache/criu}
if [ ! -x "$cache/bin/criu" ]; then
    sh "$here/unpack.sh" --with-libraries trixie criu "$cache/tree"
    loader=$(cd "$cache/tree" && find . -name 'ld-linux-*.so.*' | head -n 1)
    program=$(cd "$cache/tree" && find . -path '*bin/criu' | head -n 1)
    libraries=$(cd "$cache/tree" && find . -name 'lib*.so*' -printf "$cache/tree/%h\n" | sort -u | tr '\n' ':')
    mkdir -p "$cache/bin"
    cat > "$cache/bin/criu.$$" <<SCRIPT
#!/bin/sh
exec "$cache/tree/$loader" --library-path "$libraries" "$cache/tree/$program" "\$@"
SCRIPT
    chmod +x "$cache/bin/criu.$$"
    mv "$cache/bin/criu.$$" "$cache/bin/criu"
fi
echo "$cache/bin"
