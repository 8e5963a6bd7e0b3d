//! The directory itself: opening, locking, and reading and writing one small file.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Uid, UnlinkatFlags, fsync, geteuid, unlinkat};
use zeroize::Zeroizing;

use super::Error;

/// Mode of the directory.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits that let others write.
const OTHERS_WRITE: u32 = 0o022;
/// Permission bits that belong to anyone but the owner.
const OTHERS_ANY: u32 = 0o077;
const LOCK_FILE: &str = "lock";
/// A daemon that was killed while it started a program leaves a fork that holds the lock until its own exec.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_STEP: Duration = Duration::from_millis(10);
/// Longest content of the lock file: a process number.
const LOCK_BYTES_MAX: u64 = 16;

/// The state directory, open.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    directory: OwnedFd,
    /// Held from opening to drop by whoever may write.
    lock: Option<Flock<File>>,
    /// One file at a time: a write that nobody waits for any more may still go on, beside the next of the same file.
    writing: Mutex<()>,
}

impl StateDir {
    /// Opens the directory for a daemon, or for a command that writes: creates it if missing (mode 0700) and locks
    /// it until the value is dropped.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody else has it, [`Error::Directory`] when it cannot be trusted.
    pub fn open(path: &Path) -> Result<Self, Error> {
        create(path)?;
        let mut state = Self::open_to_read(path)?;
        state.lock = Some(state.acquire_lock()?);
        state.remove_leftovers();
        Ok(state)
    }

    /// Opens an existing directory for a look, whether a daemon has it or not. Nothing can be saved through it.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::Directory`] when it cannot be trusted.
    pub fn open_to_read(path: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory =
            openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|e| io_error("open", path, e))?;
        let stat = fstat(&directory).map_err(|e| io_error("open", path, e))?;
        check_directory(path, &stat, geteuid())?;
        Ok(Self { path: path.to_path_buf(), directory, lock: None, writing: Mutex::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file; `None` when there is none. The content is wiped on drop.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let path = self.path.join(name);
        // O_NONBLOCK: opening a FIFO must not wait for a writer.
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => {
                return Err(untrusted(path, "it is a symbolic link; put the file itself there"));
            }
            Err(errno) => return Err(io_error("open", &path, errno)),
        };
        let stat = fstat(&fd).map_err(|e| io_error("read", &path, e))?;
        check_file(&path, &stat, geteuid())?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > bytes_max {
            return Err(Error::Damaged { path, cause: "it is far too long" });
        }
        // All the room at once: a vector that grows would leave unwiped copies of a secret behind.
        let room = usize::try_from(bytes_max.min(size + 1)).unwrap_or(0);
        let mut content = Zeroizing::new(Vec::with_capacity(room));
        let read = File::from(fd).take(size).read_to_end(&mut content);
        read.map_err(|source| Error::Io { action: "read", path, source })?;
        Ok(Some(content))
    }

    /// True when there is anything by that name, a dangling link included.
    pub(super) fn exists(&self, name: &str) -> Result<bool, Error> {
        match fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(io_error("look for", &self.path.join(name), errno)),
        }
    }

    /// Replaces a file whole: beside it, fsync, rename, fsync of the directory.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        if self.lock.is_none() {
            return Err(Error::ReadOnly { path: self.path.clone() });
        }
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = format!("{name}.tmp");
        let written = self.write_beside(&temporary, content).and_then(|()| {
            renameat(&self.directory, temporary.as_str(), &self.directory, name)?;
            fsync(&self.directory)?;
            Ok(())
        });
        written.map_err(|source| {
            // Best effort: what is left over is removed at the next start.
            let _ = unlinkat(&self.directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            Error::Io { action: "write", path, source }
        })
    }

    fn write_beside(&self, temporary: &str, content: &[u8]) -> io::Result<()> {
        match unlinkat(&self.directory, temporary, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd = openat(&self.directory, temporary, flags, private)?;
        // The umask may have taken bits away, or an ACL of the directory may have added some.
        fchmod(&fd, private)?;
        let mut file = File::from(fd);
        file.write_all(content)?;
        file.sync_all()
    }

    fn acquire_lock(&self) -> Result<Flock<File>, Error> {
        let path = self.path.join(LOCK_FILE);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = openat(&self.directory, LOCK_FILE, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| io_error("open", &path, e))?;
        let mut file = File::from(fd);
        let mut waited = Duration::ZERO;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    // Only for the other side's error text: without it the lock is just as good.
                    let _ = lock.set_len(0).and_then(|()| writeln!(&*lock, "{}", std::process::id()));
                    return Ok(lock);
                }
                Err((held, Errno::EAGAIN)) if waited < LOCK_PATIENCE => file = held,
                Err((file, Errno::EAGAIN)) => {
                    return Err(Error::InUse { path: self.path.clone(), pid: holder(&file) });
                }
                Err((_, errno)) => return Err(io_error("lock", &path, errno)),
            }
            sleep(LOCK_STEP);
            waited += LOCK_STEP;
        }
    }

    /// Removes what a crash left half-written. Only the holder of the lock writes, so nobody needs it.
    fn remove_leftovers(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().ends_with(b".tmp") {
                let _ = unlinkat(&self.directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

fn create(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Io { action: "create", path: path.to_path_buf(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Nobody else may replace files in it.
fn check_directory(path: &Path, stat: &FileStat, user: Uid) -> Result<(), Error> {
    let refuse = |cause| Err(Error::Directory { path: path.to_path_buf(), cause });
    if stat.st_uid != user.as_raw() {
        return refuse(format!(
            "it belongs to uid {}, and this runs as uid {user}; run as its owner",
            stat.st_uid
        ));
    }
    if stat.st_mode & OTHERS_WRITE != 0 {
        let mode = stat.st_mode & 0o7777;
        return refuse(format!(
            "others can write to it (mode {mode:04o}); type: chmod 700 {}",
            path.display()
        ));
    }
    Ok(())
}

/// A regular file of ours that nobody else can read or write.
pub(super) fn check_file(path: &Path, stat: &FileStat, user: Uid) -> Result<(), Error> {
    let refuse = |cause: String| Err(untrusted(path.to_path_buf(), cause));
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => {}
        SFlag::S_IFDIR => return refuse("it is a directory; put the file itself there".into()),
        _ => return refuse("it is no regular file; put the file itself there".into()),
    }
    if stat.st_uid != user.as_raw() {
        let owner = stat.st_uid;
        return refuse(format!(
            "it belongs to uid {owner}, and this runs as uid {user}; run as its owner, or chown it"
        ));
    }
    if stat.st_mode & OTHERS_ANY != 0 {
        let mode = stat.st_mode & 0o7777;
        return refuse(format!(
            "others have access to it (mode {mode:04o}, so it may be known already); type: chmod 600 {}{}",
            path.display(),
            renewal(path)
        ));
    }
    Ok(())
}

/// What else helps when others may know the key.
fn renewal(path: &Path) -> String {
    match path.parent() {
        Some(directory) if path.ends_with(super::identity::FILE) => format!(
            ", and if others use this machine: azora key generate --force --state-dir {}, which is a new key and a new address",
            directory.display()
        ),
        _ => String::new(),
    }
}

fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn untrusted(path: PathBuf, cause: impl Into<String>) -> Error {
    Error::Untrusted { path, cause: cause.into() }
}

fn io_error(action: &'static str, path: &Path, errno: Errno) -> Error {
    Error::Io { action, path: path.to_path_buf(), source: errno.into() }
}
