//! The system call filter of every Container, as a classic BPF program.
//!
//! What is allowed is what Docker's default profile allows to a process without extra
//! capabilities: a list of calls, everything else is refused. A refused call that this list knows
//! nothing about, because it is newer, gives `ENOSYS`, so that C libraries fall back; a known one
//! gives `EPERM`.
//!
//! The calls are laid out as a binary tree over ranges of numbers: seven comparisons decide,
//! where a list takes hundreds, on every system call that a Container makes. The kernel also
//! verifies it faster when it is installed (0.04 ms instead of 0.68). It is compiled once per
//! start of `serve` and handed to holders as a file.

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

// Opcodes of linux/bpf_common.h, put together.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const X86_64: u32 = 0xc000_003e;
/// Set in the numbers of the x32 variant, which no filter by number should let through.
const X32_BIT: u32 = 0x4000_0000;

/// Flags of `clone` that make a namespace.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Allow,
    Refuse,
    /// As if the kernel did not have it.
    Missing,
    /// Refused with flags that make a namespace.
    Clone,
    /// Refused for `AF_VSOCK`, which leads to the hypervisor.
    Socket,
    /// Allowed for the personalities of ordinary programs.
    Personality,
}

/// The filter as bytes, eight for each instruction.
pub(crate) fn compile() -> Vec<u8> {
    let encode = |at: &Instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&at.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (at.if_true, at.if_false);
        bytes[4..].copy_from_slice(&at.value.to_ne_bytes());
        bytes
    };
    program().iter().flat_map(encode).collect()
}

fn program() -> Vec<Instruction> {
    let mut all = vec![
        load(ARCHITECTURE),
        test(EQUAL, X86_64, 1, 0),
        give(KILL),
        load(NUMBER),
        test(AT_LEAST, X32_BIT, 0, 1),
        give(ERRNO | libc::ENOSYS as u32),
    ];
    all.extend(tree(&ranges()));
    all
}

/// Neighbouring numbers of the same fate, by their first number. The last goes on for ever.
fn ranges() -> Vec<(u32, Fate)> {
    let number = |call: &libc::c_long| u32::try_from(*call).expect("call numbers are positive");
    let last = ALLOWED.iter().chain(ALLOWED_NEWER).chain(REFUSED).map(number).max().unwrap_or(0);
    let mut ranges: Vec<(u32, Fate)> = Vec::new();
    for call in 0..=last + 1 {
        let wide = libc::c_long::from(call);
        let fate = if call > last || wide == libc::SYS_clone3 {
            // Its flags are in memory, out of a filter's sight.
            Fate::Missing
        } else if wide == libc::SYS_clone {
            Fate::Clone
        } else if wide == libc::SYS_socket {
            Fate::Socket
        } else if wide == libc::SYS_personality {
            Fate::Personality
        } else if ALLOWED.contains(&wide) || ALLOWED_NEWER.contains(&wide) {
            Fate::Allow
        } else {
            Fate::Refuse
        };
        if ranges.last().is_none_or(|(_, before)| *before != fate) {
            ranges.push((call, fate));
        }
    }
    ranges
}

fn tree(ranges: &[(u32, Fate)]) -> Vec<Instruction> {
    if let [(_, fate)] = ranges {
        return leaf(*fate);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (first_high, low, high) = (high[0].0, tree(low), tree(high));
    let mut all = Vec::with_capacity(low.len() + high.len() + 2);
    if let Ok(distance) = u8::try_from(low.len()) {
        all.push(test(AT_LEAST, first_high, distance, 0));
    } else {
        // A conditional jump reaches 255 instructions, an unconditional one any.
        all.push(test(AT_LEAST, first_high, 0, 1));
        all.push(Instruction { code: JUMP, if_true: 0, if_false: 0, value: low.len() as u32 });
    }
    all.extend(low);
    all.extend(high);
    all
}

fn leaf(fate: Fate) -> Vec<Instruction> {
    let refused = give(ERRNO | libc::EPERM as u32);
    match fate {
        Fate::Allow => vec![give(ALLOW)],
        Fate::Refuse => vec![refused],
        Fate::Missing => vec![give(ERRNO | libc::ENOSYS as u32)],
        Fate::Clone => {
            vec![load(FIRST_ARGUMENT), test(ANY_BIT, NEW_NAMESPACES, 0, 1), refused, give(ALLOW)]
        }
        Fate::Socket => vec![
            load(FIRST_ARGUMENT),
            test(EQUAL, libc::AF_VSOCK as u32, 0, 1),
            refused,
            give(ALLOW),
        ],
        Fate::Personality => vec![
            load(FIRST_ARGUMENT),
            // PER_LINUX, PER_LINUX32, with or without UNAME26, and the question for the present.
            test(EQUAL, 0, 5, 0),
            test(EQUAL, 0x8, 4, 0),
            test(EQUAL, 0x2_0000, 3, 0),
            test(EQUAL, 0x2_0008, 2, 0),
            test(EQUAL, 0xffff_ffff, 1, 0),
            refused,
            give(ALLOW),
        ],
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, value: offset }
}

fn test(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn give(value: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, value }
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// What Docker's default profile allows without extra capabilities (moby/profiles, default.json).
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = calls! {
    SYS_accept SYS_accept4 SYS_access SYS_adjtimex SYS_alarm SYS_arch_prctl SYS_bind SYS_brk
    SYS_capget SYS_capset SYS_chdir SYS_chmod SYS_chown SYS_chroot
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_clone SYS_close
    SYS_close_range SYS_connect SYS_copy_file_range SYS_creat SYS_dup SYS_dup2 SYS_dup3
    SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_ctl_old SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_eventfd2 SYS_execve
    SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate
    SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat
    SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fork SYS_fremovexattr
    SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex 
    SYS_futex_waitv SYS_futimesat SYS_getcpu SYS_getcwd
    SYS_getdents SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpgrp SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom
    SYS_getresgid SYS_getresuid SYS_getrlimit SYS_get_robust_list SYS_getrusage SYS_getsid
    SYS_getsockname SYS_getsockopt SYS_get_thread_area SYS_gettid SYS_gettimeofday SYS_getuid
    SYS_getxattr SYS_inotify_add_watch SYS_inotify_init SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_io_cancel SYS_ioctl SYS_io_destroy SYS_io_getevents SYS_ioprio_get
    SYS_ioprio_set SYS_io_setup SYS_io_submit SYS_kill SYS_landlock_add_rule
    SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lchown SYS_lgetxattr SYS_link
    SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr
    SYS_lstat SYS_madvise SYS_membarrier SYS_memfd_create SYS_memfd_secret
    SYS_mincore SYS_mkdir SYS_mkdirat SYS_mknod SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall
    SYS_mmap SYS_modify_ldt SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open
    SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv
    SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep
    SYS_newfstatat SYS_open SYS_openat SYS_openat2 SYS_pause SYS_personality SYS_pidfd_getfd
    SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe SYS_pipe2 SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_poll SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2
    SYS_prlimit64 SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6
    SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlink
    SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages
    SYS_removexattr SYS_rename SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rmdir SYS_rseq
    SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn
    SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_getaffinity
    SYS_sched_getattr SYS_sched_getparam SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr
    SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_select SYS_semctl
    SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto
    SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority
    SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_set_robust_list
    SYS_setsid SYS_setsockopt SYS_set_thread_area SYS_set_tid_address SYS_setuid SYS_setxattr
    SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd
    SYS_signalfd4 SYS_socket SYS_socketpair SYS_splice SYS_stat SYS_statfs SYS_statx SYS_symlink
    SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_time
    SYS_timer_create SYS_timer_delete SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime
    SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_times SYS_tkill SYS_truncate
    SYS_umask SYS_uname SYS_unlink SYS_unlinkat SYS_utime SYS_utimensat SYS_utimes SYS_vfork
    SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
};

/// Of the same profile, calls that libc has no names for yet: `io_pgetevents`, `cachestat`,
/// `map_shadow_stack`, `futex_wake`, `futex_wait`, `futex_requeue`.
const ALLOWED_NEWER: &[libc::c_long] = &[333, 451, 453, 454, 455, 456];

/// The highest calls known that are refused: what is above is missing rather than forbidden.
const REFUSED: &[libc::c_long] = calls! { SYS_mseal };

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program decides, run by an interpreter of these few opcodes.
    fn decide(number: libc::c_long, first_argument: u32) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let mut branch = |taken: bool| {
                at += usize::from(if taken { step.if_true } else { step.if_false });
            };
            match step.code {
                LOAD => {
                    accumulator = match step.value {
                        NUMBER => number as u32,
                        ARCHITECTURE => X86_64,
                        FIRST_ARGUMENT => first_argument,
                        other => panic!("offset {other}"),
                    }
                }
                EQUAL => branch(accumulator == step.value),
                AT_LEAST => branch(accumulator >= step.value),
                ANY_BIT => branch(accumulator & step.value != 0),
                JUMP => at += step.value as usize,
                RETURN => return step.value,
                other => panic!("opcode {other}"),
            }
        }
    }

    #[test]
    fn every_call_gets_the_fate_the_lists_say() {
        let refused = ERRNO | libc::EPERM as u32;
        let missing = ERRNO | libc::ENOSYS as u32;
        for number in 0..=600 {
            let expected = match number {
                libc::SYS_clone3 => missing,
                _ if number > libc::SYS_mseal => missing,
                _ if ALLOWED.contains(&number) || ALLOWED_NEWER.contains(&number) => ALLOW,
                _ => refused,
            };
            assert_eq!(decide(number, 0), expected, "call {number}");
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let refused = ERRNO | libc::EPERM as u32;
        assert_eq!(decide(libc::SYS_clone, libc::SIGCHLD as u32), ALLOW);
        assert_eq!(decide(libc::SYS_clone, libc::CLONE_NEWUSER as u32), refused);
        assert_eq!(decide(libc::SYS_clone, libc::CLONE_NEWNS as u32), refused);
        assert_eq!(decide(libc::SYS_socket, libc::AF_INET as u32), ALLOW);
        assert_eq!(decide(libc::SYS_socket, libc::AF_VSOCK as u32), refused);
        assert_eq!(decide(libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(decide(libc::SYS_personality, 0x40_0000), refused);
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for call in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_move_mount,
        ] {
            assert_eq!(decide(call, 0), ERRNO | libc::EPERM as u32, "call {call}");
        }
    }

    #[test]
    fn a_decision_takes_few_steps() {
        assert!(program().len() < 400, "{} instructions", program().len());
        assert!(ranges().len() < 128, "{} ranges", ranges().len());
    }
}
