#!/bin/sh
# bsdtar 3.6.2 (libarchive, Debian 12), beside GNU tar 1.34: a time before 1970 with a fraction, in a pax header.
#
# Guess: "mtime=-1.5", as pax has it, is one and a half seconds before the epoch to whoever reads it, and is what is
# written for such a file.
# Seen: libarchive takes the fraction for positive in both directions. It writes -1.5 s as -2.5, and reads -1.5 as
# -0.5 s, so that what it writes it reads again, while a file of another's moves by twice its fraction: GNU tar's
# -0.25 s comes out as a quarter of a second after the epoch, and bsdtar's own -0.25 s, at GNU tar, as -1.75 s.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
apt-get download -qq 'libarchive-tools=3.6.2-1+deb12u*' 'libarchive13=3.6.2-1+deb12u*' 'tar=1.34+dfsg-1.2+deb12u*'
for package in *.deb; do
    dpkg -x "$package" system
done
bsdtar() {
    LD_LIBRARY_PATH=$(echo system/usr/lib/*-linux-gnu*) system/usr/bin/bsdtar "$@"
}
gnutar() {
    system/bin/tar --warning=no-timestamp "$@"
}
python3 - <<'PYTHON'
import os

for name, nanoseconds in (("a", -1_500_000_000), ("b", -250_000_000), ("c", -2_000_000_000), ("d", 1_500_000_000)):
    with open(name, "w"):
        os.utime(name, ns=(0, nanoseconds))
PYTHON
for writer in bsdtar gnutar; do
    $writer --format=pax -cf $writer.tar a b c d
    printf '%s writes:%s\n' $writer "$(grep -ao ' mtime=.*' $writer.tar | sed 's/ mtime=/ /' | tr -d '\n')" | tee -a seen
    for reader in bsdtar gnutar; do
        mkdir $writer-$reader
        $reader -xf $writer.tar -C $writer-$reader
        printf '%s reads:%s\n' $reader "$(cd $writer-$reader && stat -c ' %.Y' a b c d | tr -d '\n')" | tee -a seen
    done
done
cat >expected <<'SEEN'
bsdtar writes: -2.5 -1.75 -2 1.5
bsdtar reads: -1.500000000 -0.250000000 -2.000000000 1.500000000
gnutar reads: -2.500000000 -1.750000000 -2.000000000 1.500000000
gnutar writes: -1.5 -0.25 -2 1.5
bsdtar reads: -0.500000000 0.250000000 -2.000000000 1.500000000
gnutar reads: -1.500000000 -0.250000000 -2.000000000 1.500000000
SEEN
cmp expected seen
