#!/bin/sh
# Makes an emulated ARM64 machine: Debian's kernel and programs, Python with the runtimes' wheels for
# ARM, and an ssh server that lets one key in. Nothing of it runs here; all of it is in one initramfs.
#
#   image.sh FOLDER     into FOLDER/vmlinuz and FOLDER/initramfs, with FOLDER/user and FOLDER/known
#
# Needs root, mmdebstrap, cpio and ssh-keygen; DEBIAN_MIRROR names a mirror in place of the usual one,
# PYTHON a Python with pip.
set -eu
folder=$1 python=${PYTHON:-python3} here=$(cd "$(dirname "$0")/../.." && pwd)
suite=bookworm mirror=${DEBIAN_MIRROR:-}
root=$folder/root
mkdir -p "$folder"
rm -rf "$root"

mmdebstrap --quiet --architectures=arm64 --variant=extract --mode=root \
  --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
  --dpkgopt='path-exclude=/usr/share/*' --dpkgopt='path-include=/usr/share/base-passwd/*' \
  --dpkgopt='path-exclude=/boot/System.map*' \
  --include=base-files,base-passwd,dash,coreutils,mount,util-linux,kmod,iproute2,openssh-server \
  --include=python3.11,grep,sed,findutils,procps,libstdc++6,libgomp1,linux-image-arm64 \
  "$suite" "$root" ${mirror:+"$mirror"}

# The wheels that constraints.txt pins, for ARM.
wheels=$(grep -E '^(numpy|onnxruntime|ai-edge-litert)==' "$here/constraints.txt")
# shellcheck disable=SC2086
"$python" -m pip install --quiet --no-cache-dir --no-warn-conflicts --only-binary=:all: \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux2014_aarch64 --implementation cp --python-version 3.11 \
  --target "$root/usr/local/lib/python3.11/dist-packages" $wheels
ln -sf python3.11 "$root/usr/bin/python3"
ln -sf dash "$root/usr/bin/sh"

# What the packages' own scripts would have done, as far as it is needed.
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >>"$root/etc/passwd"
sed -i 's,^root:[^:]*:,root:*:,; /^root:/s,/bin/bash,/bin/sh,' "$root/etc/passwd"
rm -f "$folder/user" "$folder/user.pub" "$folder/host" "$folder/host.pub"
ssh-keygen -q -t ed25519 -N '' -f "$folder/user"
ssh-keygen -q -t ed25519 -N '' -f "$folder/host"
# Who logs in there is root, and this is that user's home.
home=$root$(sed -n 's/^root:.*:\([^:]*\):[^:]*$/\1/p' "$root/etc/passwd")
install -d -m 700 "$home/.ssh"
install -m 600 "$folder/user.pub" "$home/.ssh/authorized_keys"
install -m 600 "$folder/host" "$root/etc/ssh/ssh_host_ed25519_key"
cat >"$root/etc/ssh/sshd_config" <<'END'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
UsePAM no
MaxStartups 100
END

# Of the modules only those that its network needs: the rest is most of the image.
kernel=$(ls "$root/lib/modules")
modules="virtio virtio_ring virtio_mmio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
  failover net_failover virtio_net"
mkdir -p "$root/modules"
for module in $modules; do
  find "$root/lib/modules/$kernel/kernel" -name "$module.ko" -exec cp -t "$root/modules" {} +
done
rm -rf "$root/lib/modules"
mv "$root/boot/vmlinuz-$kernel" "$folder/vmlinuz"
rm -rf "$root/boot" "$root/var/cache" "$root/var/lib/dpkg" "$root/usr/share/base-passwd"

cat >"$root/init" <<END
#!/bin/sh
modules="$modules"
END
cat >>"$root/init" <<'END'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /run/sshd /tmp
mount -t devpts pts /dev/pts
chmod 1777 /tmp
for module in $modules; do
  [ ! -f "/modules/$module.ko" ] || insmod "/modules/$module.ko"
done
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
/usr/sbin/sshd
echo edgekit-ready
while :; do sleep 1000; done
END
chmod 755 "$root/init"
(cd "$root" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --quiet --format=newc) \
  >"$folder/initramfs"
rm -rf "$root"
