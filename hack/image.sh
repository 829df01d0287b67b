#!/usr/bin/env bash
# hack/image.sh [--failpoints]: builds the image localhost/palisade:dev and prints
# the path of its docker-archive, the only line on stdout. It is in the cache,
# named after what is in it: the same again takes no time.
#
#   ctr --namespace k8s.io images import "$(hack/image.sh)"
#   podman load --input "$(hack/image.sh)"
#
# --failpoints builds localhost/palisade:failpoints for tests: the program of
# `cargo test --features failpoints`, not optimized, of any size.
#
# Needs cargo, python3, and buildah: installed by apt-get where we are root on a
# Debian; else the exit code is 77. Nothing is pulled: the Containerfile's last
# stage is built with this machine's libraries, and nothing in it is run.
# What came out is checked: size, user, labels, that the program starts as that
# user with nothing but the image's files, resolves names, and trusts the roots.
#
# SOURCE_DATE_EPOCH   the image's time (the commit's)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A fifth below it is what we have; who comes near it asks what has grown.
LIMIT=40000000
IMAGES=$CACHE/image
USER_ID=65532:65532

# missing TEXT: what this machine lacks. 77: not done, and not failed either.
missing() {
  say "skipped: $*"
  exit 77
}

ensure_buildah() {
  ! command -v buildah >/dev/null || return 0
  can_install ||
    missing "no buildah found: install it (version 1.24 or newer), or build the Containerfile by another builder"
  apt_install buildah
}

# compile: sets BINARY.
compile() {
  if [[ $TAG == failpoints ]]; then
    BINARY=$(build_palisade)
    return
  fi
  need cargo "it builds palisade"
  (cd "$REPO" && cargo build --locked --bin palisade --release) >&2
  BINARY=$CARGO_TARGET_DIR/release/palisade
}

# describe: sets VERSION, REVISION and EPOCH.
describe() {
  VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' "$REPO/Cargo.toml")
  REVISION=$(git -C "$REPO" rev-parse HEAD 2>/dev/null || echo unknown)
  [[ -z $(git -C "$REPO" status --porcelain --untracked-files=no 2>/dev/null) ]] || REVISION+=-dirty
  EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$REPO" log -1 --format=%ct 2>/dev/null || echo 0)}
}

fingerprint() {
  {
    echo "$TAG $VERSION $REVISION $EPOCH"
    cat "$BINARY" "$REPO"/{Containerfile,LICENSE,hack/image.sh,hack/rootfs.sh} /etc/ssl/certs/ca-certificates.crt
    ldd "$BINARY" | grep -o '/[^ ]*' | sort -u | xargs cat
  } | sha256sum | cut -c1-16
}

# assemble ARCHIVE: from scratch, in WORK.
assemble() {
  mkdir -p "$WORK/build"
  cp "$BINARY" "$WORK/palisade"
  [[ $TAG != failpoints ]] || strip "$WORK/palisade"
  "$REPO/hack/rootfs.sh" "$WORK/palisade" "$WORK/build/rootfs"
  # chroot and vfs need no mounts and no devices. The context takes the place of
  # the stage "build", which is then not built. OCI's format has no random ids.
  BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs buildah --root "$WORK/storage" --runroot "$WORK/run" build \
    --build-context "build=$WORK" --format oci --squash --omit-history --identity-label=false --timestamp "$EPOCH" \
    --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" \
    --build-arg "CREATED=$(date -u -d "@$EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
    --tag "docker-archive:$1:localhost/palisade:$TAG" --file "$REPO/Containerfile" "$WORK/build"
}

# unpack ARCHIVE: the only layer, as it is in the archive, to WORK/image.
unpack() {
  mkdir -p "$WORK/archive" "$WORK/image"
  tar -xf "$1" -C "$WORK/archive"
  python3 - "$WORK/archive" "$TAG" "$VERSION" "$USER_ID" >"$WORK/layer" <<'PYTHON'
import json, sys
folder, tag, version, user = sys.argv[1:]
[image] = json.load(open(folder + "/manifest.json"))
assert image["RepoTags"] == ["localhost/palisade:" + tag], image["RepoTags"]
assert len(image["Layers"]) == 1, image["Layers"]
config = json.load(open(folder + "/" + image["Config"]))["config"]
assert config["User"] == user, config
assert config["Entrypoint"] == ["/usr/local/bin/palisade"], config
labels = config["Labels"]
names = ["title", "description", "source", "licenses", "version", "revision", "created"]
assert sorted(labels) == sorted("org.opencontainers.image." + name for name in names), labels
assert all(labels.values()) and labels["org.opencontainers.image.version"] == version, labels
print(folder + "/" + image["Layers"][0])
PYTHON
  tar -xf "$(cat "$WORK/layer")" -C "$WORK/image"
}

# inside [NAME=VALUE...] COMMAND...: with the image's files alone, as its user.
inside() {
  local root=(chroot) environment=(PATH=/usr/sbin:/usr/bin:/sbin:/bin)
  ((EUID == 0)) || root=(unshare --map-root-user chroot)
  ((EUID != 0)) || root+=("--userspec=$USER_ID")
  while [[ $1 == *=* ]]; do
    environment+=("$1")
    shift
  done
  env -i "${environment[@]}" "${root[@]}" "$WORK/image" "$@"
}

fail_check() { die "the image is not as it should be: $*"; }

# check_fetch: names are looked up, TLS has the public roots (a server that is not
# of theirs is refused for that, not for want of any), and takes others. What
# kubelet brings, /etc/hosts and a volume, is added to the unpacked copy.
check_fetch() (
  local answer port args
  need openssl "ca-certificates needs it, too"
  printf '%s\n' '[req]' 'distinguished_name = dn' 'x509_extensions = ext' 'prompt = no' '[dn]' 'CN = palisade.test' \
    '[ext]' 'subjectAltName = DNS:palisade.test' >"$WORK/request"
  openssl req -x509 -config "$WORK/request" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
    -keyout "$WORK/key.pem" -out "$WORK/cert.pem" 2>/dev/null
  mkdir "$WORK/served"
  echo model >"$WORK/served/model"
  coproc SERVER {
    exec python3 - "$WORK" <<'PYTHON'
import functools, http.server, ssl, sys
folder = sys.argv[1]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder + "/served")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
  } 2>/dev/null
  trap 'kill "$SERVER_PID"' EXIT
  read -r port <&"${SERVER[0]}"
  echo '127.0.0.1 palisade.test' >"$WORK/image/etc/hosts"
  install -d -m 777 "$WORK/image/volume"
  cp "$WORK/cert.pem" "$WORK/image/volume/ca.pem"
  chmod 644 "$WORK/image/volume/ca.pem"
  args=(fetch --to /volume/model --retries 0 --source "https://palisade.test:$port/model" --digest "sha256:$(sha256sum <"$WORK/served/model" | cut -d' ' -f1)")
  answer=$(inside /usr/local/bin/palisade "${args[@]}" 2>&1) && fail_check "it trusts a server that nobody vouches for"
  [[ $answer == *UnknownIssuer* ]] || fail_check "it refuses a private server, but not for its issuer: $answer"
  answer=$(inside SSL_CERT_FILE=/volume/ca.pem /usr/local/bin/palisade "${args[@]}" 2>&1) ||
    fail_check "it cannot fetch by https from a name: $answer"
)

check() {
  local size path answer
  unpack "$1"
  size=$(stat -c %s "$(cat "$WORK/layer")")
  [[ $TAG == failpoints ]] || ((size <= LIMIT)) || fail_check "$size bytes; at most $LIMIT are allowed"
  for path in tmp bin/sh usr/bin; do
    [[ ! -e $WORK/image/$path ]] || fail_check "it has /$path"
  done
  [[ -z $(find "$WORK/image" -perm /6002 ! -type l -print -quit) ]] || fail_check "a file is setuid, or can be written by all"
  for path in palisade kubectl-palisade; do
    answer=$(inside "/usr/local/bin/$path" --version) || fail_check "$path does not start"
    [[ $answer == *" $VERSION" ]] || fail_check "$path says that it is '$answer'"
  done
  check_fetch
  say "image: $((size / 1000000)).$((size / 100000 % 10)) MB unpacked, checked"
}

# build FILE
build() {
  local old
  with_progress "building localhost/palisade:$TAG" "$IMAGES/log" assemble "$WORK/archive.tar"
  check "$WORK/archive.tar"
  mv "$WORK/archive.tar" "$1"
  # Each commit has its own: the newest are enough. Who reads one right now still can.
  find "$IMAGES" -name "palisade-$TAG-*.tar" -printf '%T@ %p\n' | sort -rn | tail -n +5 | cut -d' ' -f2- |
    while read -r old; do rm -f "$old"; done
}

main() {
  local archive
  TAG=dev
  case ${1:-} in
    '') ;;
    --failpoints) TAG=failpoints ;;
    *)
      sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
  ensure_buildah
  need python3 "it reads the image's description"
  compile
  describe
  archive=$IMAGES/palisade-$TAG-$(fingerprint).tar
  once "$archive" "the image of palisade" build "$archive"
  echo "$archive"
}

main "$@"
