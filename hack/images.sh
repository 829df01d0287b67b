#!/usr/bin/env bash
# hack/images.sh NAME: builds an image for the node of `make e2e` and prints the path
# of its docker-archive, the only line on stdout. No builder is needed, nothing is
# pulled: a folder of files becomes the only layer. Cached, named after what is in it.
#
#   pause      localhost/pause:1: what holds a pod's namespaces
#   mlserver   localhost/mlserver:1.7.1: MLServer with scikit-learn. Beside PATH.tar, in
#              PATH.models, 1.tar.gz and 2.tar.gz: two versions of a model for it
#   postgres   localhost/postgres:15: the server, as Debian has it
#
# mlserver and postgres are made of Debian 12's packages, and tried by chroot: where we
# are not root on one, the exit code is 77.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

IMAGES=$CACHE/image
PYTHON_PACKAGES=(python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6
  libbz2-1.0 libcrypt1 libdb5.3 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 libtinfo6
  libuuid1 zlib1g media-types)
# Without what compiles queries, which is larger than all the rest.
POSTGRES_PACKAGES=(postgresql-15 postgresql-client-15 libpq5 tzdata dash coreutils sed grep libc6 libgcc-s1 libstdc++6 libicu72
  libldap-2.5-0 libsasl2-2 libgnutls30 libp11-kit0 libidn2-0 libunistring2 libtasn1-6 libnettle8 libhogweed6 libgmp10 libffi8
  libpam0g libaudit1 libcap-ng0 libcap2 libselinux1 libpcre2-8-0 libssl3 libsystemd0 libgcrypt20 libgpg-error0 libxml2
  libxslt1.1 libuuid1 libzstd1 liblz4-1 liblzma5 zlib1g libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2
  libkrb5support0 libkeyutils1 libreadline8 libtinfo6 libedit2 libbsd0 libmd0 libacl1 libattr1)

# packages ROOT NAMES...
packages() {
  apt_unpack "$@"
  rm -rf "${1:?}"/usr/share/{doc,man,lintian,locale}
}

users() {
  mkdir -p "$1/etc" "$1/tmp"
  chmod 1777 "$1/tmp"
  printf '%s\n' 'root:x:0:0:root:/:/bin/false' "$2:x:$3:$3:$2:/tmp:/bin/false" >"$1/etc/passwd"
  printf '%s\n' 'root:x:0:' "$2:x:$3:" >"$1/etc/group"
  printf '%s\n' 'hosts: files dns' >"$1/etc/nsswitch.conf"
}

fill_pause() { install -D -m 755 "$NODE/pause" "$1/pause"; }

fill_mlserver() {
  local platform platforms=() library
  packages "$1" "${PYTHON_PACKAGES[@]}"
  for platform in _2_28 _2_27 _2_24 _2_17 2014 _2_5 1; do platforms+=(--platform "manylinux${platform}_x86_64"); done
  pip_install MLServer "$WORK/python" "$REPO/hack/mlserver.txt" \
    --python-version 3.11 "${platforms[@]}" --target "$1/opt/mlserver" --no-cache-dir
  # A third of it, which nobody imports.
  for library in scipy sklearn pandas numpy; do
    find "$1/opt/mlserver/$library" -depth -type d -name tests -exec rm -rf {} +
  done
  users "$1" mlserver 1000
  env -i PYTHONPATH=/opt/mlserver "$(command -v chroot)" "$1" /usr/bin/python3.11 -c "$TRAIN"
  mkdir -p "$FILE.models"
  mv "$1"/tmp/*.tar.gz "$FILE.models"
  rm -rf "$1"/tmp/*
}

fill_postgres() {
  packages "$1" "${POSTGRES_PACKAGES[@]}"
  rm -rf "$1"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*}
  users "$1" postgres 999
  env -i LC_ALL=C "$(command -v chroot)" "$1" /usr/lib/postgresql/15/bin/postgres --version
}

# shellcheck disable=SC2016 # Python's
TRAIN='
import io, json, tarfile, joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
x, y = load_iris(return_X_y=True)
for version in (1, 2):
    # Version 2 calls the classes 10, 11, 12: each answer says which version it is by.
    model = LogisticRegression(max_iter=1000).fit(x, y if version == 1 else y + 10)
    joblib.dump(model, "/tmp/model.joblib")
    settings = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel",
                "parameters": {"uri": "./model.joblib", "version": str(version)}}
    with tarfile.open(f"/tmp/{version}.tar.gz", "w:gz") as tar:
        tar.add("/tmp/model.joblib", "model.joblib")
        text = json.dumps(settings).encode()
        info = tarfile.TarInfo("model-settings.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
'

describe() {
  case $1 in
    pause) echo '{"Entrypoint": ["/pause"], "User": "65535:65535"}' ;;
    mlserver)
      cat <<'CONFIG'
{"Entrypoint": ["/usr/bin/python3.11", "-c", "from mlserver.cli import main; main()"], "Cmd": ["start", "/models/model"], "User": "1000:1000",
 "WorkingDir": "/tmp", "Env": ["PATH=/usr/bin:/bin", "PYTHONPATH=/opt/mlserver", "HOME=/tmp", "LANG=C.UTF-8"]}
CONFIG
      ;;
    postgres)
      echo '{"Cmd": ["/bin/sh"], "User": "999:999", "Env": ["PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin", "LANG=C.UTF-8"]}'
      ;;
  esac
}

tag() {
  case $1 in
    pause) echo localhost/pause:1 ;;
    mlserver) echo localhost/mlserver:1.7.1 ;;
    postgres) echo localhost/postgres:15 ;;
  esac
}

# archive ROOT TAG CONFIG FILE: a docker-archive of one layer.
archive() {
  python3 - "$@" <<'PYTHON'
import hashlib, io, json, os, sys, tarfile
root, tag, config, file = sys.argv[1:]
layer = file + ".layer"
def owned(info):
    # As root of the image, whoever builds it; as old as time, so that it is the same again.
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
with tarfile.open(layer, "w") as tar:
    for name in sorted(os.listdir(root)):
        tar.add(os.path.join(root, name), name, filter=owned)
with open(layer, "rb") as content:
    digest = hashlib.file_digest(content, "sha256").hexdigest()
arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
image = json.dumps({"architecture": arch, "os": "linux", "config": json.loads(config),
                    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]}}).encode()
name = hashlib.sha256(image).hexdigest() + ".json"
manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": [digest + ".tar"]}]).encode()
with tarfile.open(file, "w") as tar:
    for path, content in ((name, image), ("manifest.json", manifest)):
        info = tarfile.TarInfo(path)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    tar.add(layer, digest + ".tar", filter=owned)
os.remove(layer)
PYTHON
}

# build NAME FILE
build() {
  with_progress "building the image $(tag "$1")" "$IMAGES/$1.log" assemble "$@"
  find "$IMAGES" -maxdepth 1 -name "$1-*" ! -name "$(basename "${2%.tar}")*" -mtime +1 -exec rm -rf {} +
}

assemble() {
  mkdir -p "$WORK/root"
  chmod 755 "$WORK/root"
  FILE=${2%.tar}
  "fill_$1" "$WORK/root"
  archive "$WORK/root" "$(tag "$1")" "$(describe "$1")" "$WORK/image.tar"
  mv "$WORK/image.tar" "$2"
}

main() {
  local name=${1:-} file
  [[ -n $(tag "$name") ]] || die "usage: hack/images.sh pause|mlserver|postgres"
  need python3 "it writes the image"
  if [[ $name != pause ]] && ! { can_install && grep -q '^12' /etc/debian_version 2>/dev/null; }; then
    say "skipped: the image of $name is made of Debian 12's packages, and needs root on one"
    exit 77
  fi
  NODE=$("$REPO/hack/binaries.sh" --node)
  file=$IMAGES/$name-$({
    declare -f packages users "fill_$name" describe tag archive
    [[ $name != mlserver ]] || echo "${PYTHON_PACKAGES[*]} $TRAIN"
    [[ $name != postgres ]] || echo "${POSTGRES_PACKAGES[*]}"
    cat "$REPO/hack/mlserver.txt" "$REPO"/tests/cluster/pause/*.go
  } | sha256sum | cut -c1-16).tar
  once "$file" "the image of $name" build "$name" "$file"
  echo "$file"
}

main "$@"
