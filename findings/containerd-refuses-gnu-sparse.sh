#!/bin/sh
# containerd 1.6.20 (Debian 12), importing an image whose layer GNU tar 1.34 made of a file with a hole. Needs root.
#
# Guess: a layer is unpacked whichever way tar wrote the hole down, since Go's archive/tar, which containerd reads
# layers with, is documented to read sparse files of both of GNU tar's forms.
# Seen: --format=pax --sparse is unpacked, as is the layer without --sparse; --format=gnu --sparse (GNU tar's own
# format, what `tar -S` writes by default) is "unhandled tar header type 83": Go hands the header's type 'S' on
# with the file's whole contents, and containerd knows no file of that type.
set -eu
folder=$(mktemp -d)
daemon=
trap 'test -z "$daemon" || { kill "$daemon"; wait "$daemon" || true; }; rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
apt-get download -qq 'containerd=1.6.20~ds1-1+deb12u*'
dpkg -x containerd_*.deb system
export PATH="$folder/system/usr/bin:$PATH" CONTAINERD_ADDRESS="$folder/socket"

truncate --size=1M file
printf x | dd of=file bs=1 seek=500000 conv=notrunc status=none
tar --format=gnu -cf plain.tar file
tar --format=gnu --sparse -cf gnu.tar file
tar --format=pax --sparse -cf pax.tar file
python3 - plain gnu pax <<'PYTHON'
import hashlib
import io
import json
import sys
import tarfile

OCI = "application/vnd.oci.image"
for name in sys.argv[1:]:
    blobs = {}

    def put(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    with open(f"{name}.tar", "rb") as file:
        layer = put("layer.v1.tar", file.read())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    config = put("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "config": config, "layers": [layer]}
    manifest = put("manifest.v1+json", json.dumps(manifest).encode())
    manifest["annotations"] = {"io.containerd.image.name": f"example.com/{name}:1"}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(f"image-{name}.tar", "w") as image:
        for path, data in blobs.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            image.addfile(info, io.BytesIO(data))
PYTHON

containerd --config /dev/null --root "$folder/root" --state "$folder/state" \
    --address "$folder/socket" >log 2>&1 &
daemon=$!
tries=0
until ctr version >/dev/null 2>&1; do
    tries=$((tries + 1))
    test $tries -lt 150
    sleep 0.2
done
for name in plain gnu pax; do
    if ctr images import --snapshotter native "image-$name.tar" >"$name.out" 2>&1; then
        echo "$name: unpacked" | tee -a seen
    else
        echo "$name: $(grep -o 'unhandled tar header type 83: unknown' "$name.out" | head -1)" | tee -a seen
    fi
done
printf '%s\n' 'plain: unpacked' 'gnu: unhandled tar header type 83: unknown' 'pax: unpacked' | cmp - seen
