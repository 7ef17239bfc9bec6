#!/bin/sh
# Unpack a program of another Debian suite, and print the folder in which it can be started.
#
# It needs a newer libc than there is, so its libraries are unpacked too and it is started through
# their loader. Nothing is installed.
# usage: loaded.sh SUITE PACKAGE PROGRAM    (into .cache in the repository)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
suite=$1 package=$2 program=$3
cache=$(cd "$here/../.." && pwd)/.cache/$package-$suite
if [ ! -x "$cache/bin/$program" ]; then
    sh "$here/unpack.sh" --with-libraries "$suite" "$package" "$cache/tree"
    loader=$(cd "$cache/tree" && find . -name 'ld-linux-*.so.*' | head -n 1)
    found=$(cd "$cache/tree" && find . -path "*bin/$program" | head -n 1)
    libraries=$(cd "$cache/tree" && find . -name 'lib*.so*' -printf "$cache/tree/%h\n" | sort -u | tr '\n' ':')
    mkdir -p "$cache/bin"
    cat > "$cache/bin/$program.$$" <<SCRIPT
#!/bin/sh
exec "$cache/tree/$loader" --library-path "$libraries" "$cache/tree/$found" "\$@"
SCRIPT
    chmod +x "$cache/bin/$program.$$"
    mv "$cache/bin/$program.$$" "$cache/bin/$program"
fi
echo "$cache/bin"
