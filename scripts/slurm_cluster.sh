#!/bin/bash
# A SLURM of one node on this machine, for as long as a command runs. For tests; needs root.
#
#     scripts/slurm_cluster.sh FOLDER COMMAND...
#
# Debian's packages slurm-wlm and munge are installed if they are missing. All that the daemons write is in FOLDER; what
# is left of them and of their jobs is killed when the command ends. Its exit code is passed on.
#
# The node claims more processors than there may be, as nothing that is tested needs them for itself. Its partitions:
# "main", and "urgent", whose jobs preempt those of "main", which get ten seconds to save and are requeued.

set -eu

if [[ $# -lt 2 ]]; then
    echo "usage: $0 FOLDER COMMAND..." >&2
    exit 2
fi
if [[ $EUID -ne 0 ]]; then
    echo "$0: the daemons of a cluster are started by root" >&2
    exit 2
fi
if ! type sbatch slurmctld slurmd munged >/dev/null 2>&1; then
    echo "installing slurm-wlm and munge" >&2
    apt-get install -qq --yes --no-install-recommends slurm-wlm munge >&2
fi

mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
mkdir -p "$folder"/{munge,state,spool}
chmod 755 "$folder"
host=$(hostname -s)
port=$((20000 + $$ % 5000))

# A requeued job waits for its credential to expire: two minutes, unless cred_expire says less.
cat >"$folder/slurm.conf" <<CONF
ClusterName=geexp
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=$((port + 5000))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2
CONF
export SLURM_CONF=$folder/slurm.conf

stop() {
    # Steps and batch scripts are children of slurmstepd, which ends with its job; cancelled first, then not waited for.
    scancel --user=root 2>/dev/null && timeout 10 bash -c 'while [[ $(squeue --noheader) ]]; do sleep 0.2; done' || true
    for daemon in slurmd slurmctld munge/munged; do
        [[ -s $folder/$daemon.pid ]] || continue
        pid=$(<"$folder/$daemon.pid")
        kill "$pid" 2>/dev/null || continue
        timeout 10 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" || true
    done
}
trap stop EXIT

# Its key and its socket are no one else's, so that a munged of the machine is not in the way.
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/munge.key")
munged --key-file="$folder/munge/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munge/munged.pid" \
    --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/munged.seed" 2>"$folder/munge/stderr.log"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"

for _ in {1..150}; do
    [[ $(sinfo --noheader --partition=main --format=%t 2>/dev/null) == idle ]] && break
    sleep 0.2
done
if [[ $(sinfo --noheader --partition=main --format=%t) != idle ]]; then
    echo "$0: the node does not come up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
    tail -n 20 "$folder/slurmctld.log" "$folder/slurmd.log" >&2
    exit 1
fi

code=0
"$@" || code=$?
exit "$code"
