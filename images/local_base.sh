#!/usr/bin/env bash
# Bases like python:3.11-slim-bookworm from Debian's own packages, for machines that reach a Debian mirror and a Python
# package index but no image registry. Makes two images, prints what `make images` needs to build on them:
#
#   NAME        Python 3.11, nothing else: stands for BASE
#   NAME-build  the same with pip, this machine's certificate authorities, and the wheels in PIP_FIND_LINKS: BUILD_BASE
#
# Needs root, debootstrap and Docker. MIRROR is by default the one that apt uses here.
set -euo pipefail
name=${1:-python:3.11-slim-bookworm}
docker=${DOCKER:-docker}
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 == "bookworm" { print $1; exit }')}
work=$(mktemp -d)
# What is printed is for eval: after a failure that is `false`, so that `eval "$(...)" && make images` stops.
trap 'code=$?; rm -rf "$work"; if [ "$code" != 0 ]; then echo "error: images/local_base.sh made no base" >&2; echo false; fi' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$work/root" ${mirror:+"$mirror"} >&2
ln -s /usr/bin/python3 "$work/root/usr/local/bin/python"
ln -s /usr/bin/python3 "$work/root/usr/local/bin/python3"
rm -rf "$work"/root/usr/lib/python3*/EXTERNALLY-MANAGED "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
path='ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin'
tar -C "$work/root" --exclude='./dev/*' --exclude='./proc/*' -c . | "$docker" import -c "$path" - "$name-pip" >/dev/null

mkdir -p "$work/build/wheels"
cp -L /etc/ssl/certs/ca-certificates.crt "$work/build/authorities.crt"
for folder in ${PIP_FIND_LINKS:-}; do
  # Addresses and empty folders have no wheel to bring.
  if [ -d "$folder" ]; then find "$folder" -maxdepth 1 -name '*.whl' -exec cp -t "$work/build/wheels" {} +; fi
done
printf '[global]\ncert = /etc/ssl/certs/authorities.crt\nfind-links = /opt/wheels\n' > "$work/build/pip.conf"
cat > "$work/build/Dockerfile" <<EOF
FROM $name-pip
COPY authorities.crt /etc/ssl/certs/authorities.crt
COPY wheels /opt/wheels
COPY pip.conf /etc/pip.conf
EOF
"$docker" build --quiet --tag "$name-build" "$work/build" >/dev/null

# pip and its like are not in what the images run on.
chroot "$work/root" apt-get purge --yes --autoremove python3-pip >&2
tar -C "$work/root" --exclude='./dev/*' --exclude='./proc/*' -c . | "$docker" import -c "$path" - "$name" >/dev/null
echo "export BASE=$name EXPORT_BASE=$name BUILD_BASE=$name-build"
