#!/usr/bin/env bash
# Runs a command against Ceph's radosgw, a real object store, on loopback: with_radosgw.sh COMMAND...
# Needs root and: apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd
set -euo pipefail
for needed in radosgw radosgw-admin ceph-mon ceph-osd; do
  command -v "$needed" >/dev/null || { echo "SKIPPED: $needed is not installed" >&2; exit 0; }
done
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
folder=
stop() {
  for file in "$folder"/run/*.pid; do [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null; done
  sleep 1
  rm -rf "$folder"
}
trap stop EXIT
configure() {
  mkdir -p "$folder"/{mon,osd0,rgw,run,log}
  export CEPH_CONF=$folder/ceph.conf
  cat >"$CEPH_CONF" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v1:127.0.0.1:$monitor]
ms_bind_msgr2 = false
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_crit = -1
mon_pg_warn_min_per_osd = 0
run_dir = $folder/run
admin_socket = $folder/run/\$name.asok
pid_file = $folder/run/\$name.pid
log_file = $folder/log/\$name.log
crash_dir = $folder/crash
keyring = $folder/keyring
[mon]
mon_data = $folder/mon
[osd]
osd_data = $folder/osd0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_class_default_list = *
osd_class_load_list = *
[client]
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_data = $folder/rgw
rgw_crypt_require_ssl = false
CONF
}
start() { # in one chain, since no error ends a function whose result is asked for
  ceph-authtool "$folder/keyring" --create-keyring --gen-key -n mon. --cap mon 'allow *' &&
    ceph-authtool "$folder/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' &&
    monmaptool --create --clobber --addv a "[v1:127.0.0.1:$monitor]" --fsid "$(awk '/^fsid/{print $3}' "$CEPH_CONF")" "$folder/monmap" &&
    ceph-mon -i a --mkfs --monmap "$folder/monmap" --keyring "$folder/keyring" &&
    ceph-mon -i a &&
    ceph-osd -i 0 --mkfs &&
    timeout 60 ceph osd new "$(cat "$folder/osd0/fsid")" &&
    ceph-osd -i 0 &&
    radosgw -n client.rgw &&
    timeout 60 radosgw-admin -n client.rgw user create --uid=test --display-name=test --access-key=test-key --secret-key=test-secret
}
for attempt in 1 2 3; do # rarely the parts do not find each other, and then it waits for ever
  folder=$(mktemp -d) port=$(free_port) monitor=$(free_port)
  configure
  if start >"$folder/log/start" 2>&1; then break; fi
  tail -5 "$folder/log/start" >&2
  if [ "$attempt" = 3 ]; then exit 1; fi
  stop
done
INAT_TEST_S3_ENDPOINT=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=test-key AWS_SECRET_ACCESS_KEY=test-secret \
  AWS_DEFAULT_REGION=us-east-1 "$@"
