//! One member from its header, the pax values and GNU names before it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::event::{Event, Options};
use super::header::Header;
use super::key::MAX_PATH;
use super::pax::{MAX_PROBLEMS, MORE_PROBLEMS, Values};
use super::solaris;
use crate::entry::{
    ACL_ACCESS, ACL_DEFAULT, Acl, Device, Entry, EntryKind, EntryPath, Metadata, NOBODY, PathError, SET_ID, SparseMap,
    TargetError, Timestamp, Xattrs, check_target, escape,
};

/// What the headers before a member say of it.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) local: Values,
    pub(super) has_pax: bool,
    pub(super) long_path: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    /// A GNU name was longer than is held.
    pub(super) too_long: bool,
    /// The payload of a member of type `A`.
    pub(super) solaris_acl: Option<Vec<u8>>,
}

impl Extensions {
    pub(super) fn any(&self) -> bool {
        self.has_pax
            || self.long_path.is_some()
            || self.long_link.is_some()
            || self.too_long
            || self.solaris_acl.is_some()
    }

    /// A pax header begins. GNU tar, bsdtar and Go take nothing from one before it.
    pub(super) fn begin_pax(&mut self) {
        if std::mem::replace(&mut self.has_pax, true) {
            self.local = Values::default();
            self.local.warn("it has several pax headers: the last one is taken, the others are ignored".into());
        }
    }

    /// The name that stands before that of the header.
    fn path(&self) -> Option<&[u8]> {
        let sparse = self.local.sparse.name.as_deref();
        sparse.or(self.local.path.get().map(|path| &**path)).or(self.long_path.as_deref())
    }
}

/// The sizes and the map that the decoder has found for a member.
pub(super) struct Shape {
    /// Bytes in the archive.
    pub(super) stored: u64,
    /// The map, where the member has holes.
    pub(super) sparse: Option<SparseMap>,
}

/// Why a member is left out.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeftOut {
    /// Its pax header says so.
    #[error("{0}")]
    Header(String),
    #[error("its name or target is over {MAX_PATH} bytes long")]
    TooLong,
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("its link target: {0}")]
    Link(#[source] PathError),
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// Names of owners: most members have those of the member before.
#[derive(Debug, Default)]
pub(super) struct Owners {
    user: Last,
    group: Last,
}

#[derive(Debug, Default)]
struct Last(Option<Arc<[u8]>>);

impl Last {
    fn get(&mut self, name: &[u8]) -> Option<Arc<[u8]>> {
        if name.is_empty() {
            return None;
        }
        if self.0.as_deref() != Some(name) {
            self.0 = Some(name.into());
        }
        self.0.clone()
    }
}

pub(super) struct Builder<'a, 'e> {
    pub(super) header: &'a Header<'a>,
    pub(super) extensions: &'a Extensions,
    pub(super) global: &'a Values,
    pub(super) options: &'a Options,
    /// Whether a leading `/` has been warned of already.
    pub(super) slash_told: &'e mut bool,
    pub(super) owners: &'e mut Owners,
    pub(super) events: &'e mut std::collections::VecDeque<Event<'static>>,
}

impl<'a> Builder<'a, '_> {
    /// The name as packed.
    pub(super) fn raw_path(&self) -> Cow<'a, [u8]> {
        self.extensions.path().map_or_else(|| self.header.path(), Cow::Borrowed)
    }

    fn raw_link(&self) -> &'a [u8] {
        let x = self.extensions;
        if let Some(link) = x.local.link.get() {
            link
        } else if let Some(link) = &x.long_link {
            link
        } else {
            self.header.link()
        }
    }

    /// Makes the entry, or says why it is left out. What is mended goes to the events.
    pub(super) fn build(mut self, raw_path: &[u8], shape: Shape) -> Result<Entry, LeftOut> {
        let x = self.extensions;
        if let Some(reason) = &x.local.refuse_member {
            return Err(LeftOut::Header(reason.clone()));
        }
        if x.too_long {
            return Err(LeftOut::TooLong);
        }
        let path = EntryPath::parse(raw_path)?;
        self.leading_slash(raw_path);
        let both = x.long_path.is_some() && x.local.path.get().is_some()
            || x.long_link.is_some() && x.local.link.get().is_some();
        if both {
            self.warn(raw_path, "it has a pax and a GNU long name: the pax one is taken");
        }
        let kind = self.kind(raw_path, shape)?;
        let metadata = self.metadata(raw_path, &kind);
        Ok(Entry { path, kind, metadata })
    }

    fn kind(&mut self, raw_path: &[u8], shape: Shape) -> Result<EntryKind, LeftOut> {
        let file = |shape: Shape| EntryKind::File {
            size: shape.sparse.as_ref().map_or(shape.stored, SparseMap::size),
            sparse: shape.sparse.map(Arc::new),
        };
        Ok(match self.header.typeflag() {
            typeflag if is_plain_file(typeflag) && raw_path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => file(shape),
            b'1' => {
                let link = self.raw_link();
                let target = EntryPath::parse(link).map_err(LeftOut::Link)?;
                self.leading_slash(link);
                EntryKind::HardLink { target }
            }
            b'2' => {
                let target = self.raw_link();
                check_target(target)?;
                EntryKind::Symlink { target: target.into() }
            }
            b'3' => EntryKind::CharDevice { device: self.device(raw_path) },
            b'4' => EntryKind::BlockDevice { device: self.device(raw_path) },
            b'5' | b'D' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                let message = format!("its type '{}' is unknown: taken for a regular file", escape(&[other]));
                self.warn(raw_path, message);
                file(shape)
            }
        })
    }

    fn device(&mut self, raw_path: &[u8]) -> Device {
        let x = &self.extensions.local;
        let major = x.device_major.or(&self.global.device_major).map(|&n| i128::from(n));
        let minor = x.device_minor.or(&self.global.device_minor).map(|&n| i128::from(n));
        let major = major.or_else(|| self.header.device_major()).and_then(|n| u32::try_from(n).ok());
        let minor = minor.or_else(|| self.header.device_minor()).and_then(|n| u32::try_from(n).ok());
        if let (Some(major), Some(minor)) = (major, minor) {
            Device { major, minor }
        } else {
            self.warn(raw_path, "its device number cannot be read: 0:0 is taken");
            Device { major: 0, minor: 0 }
        }
    }

    fn metadata(&mut self, path: &[u8], kind: &EntryKind) -> Metadata {
        let directory = *kind == EntryKind::Directory;
        let (x, g) = (&self.extensions.local, self.global);
        let mut mode = match self.header.mode() {
            Some(mode) => (mode & 0o7777) as u16,
            None => {
                self.warn(path, "its mode cannot be read: only its owner gets access");
                if directory { 0o700 } else { 0o600 }
            }
        };
        let uid = x.uid.or(&g.uid).copied().or_else(|| self.header.uid());
        let gid = x.gid.or(&g.gid).copied().or_else(|| self.header.gid());
        let id = |n: Option<i128>| n.and_then(|n| u32::try_from(n).ok()).filter(|&n| n != u32::MAX);
        let (uid, gid) = match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => (uid, gid),
            (uid, gid) => {
                let dropped = if mode & SET_ID != 0 { ", setuid and setgid are dropped" } else { "" };
                mode &= !SET_ID;
                self.warn(path, format!("its owner is no number that Linux has: {NOBODY} is taken{dropped}"));
                (uid.unwrap_or(NOBODY), gid.unwrap_or(NOBODY))
            }
        };
        let header_time = |n: i128| {
            let clamped = n.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            Timestamp::new(clamped as i64, 0)
        };
        let mtime = match x.mtime.or(&g.mtime).copied().or_else(|| self.header.mtime().map(header_time)) {
            Some(mtime) => mtime,
            None => {
                self.warn(path, "its time cannot be read: 1970 is taken");
                Timestamp::default()
            }
        };
        let atime = x.atime.or(&g.atime).copied().or_else(|| self.header.atime().map(header_time));
        let user = self.owners.user.get(x.user.or(&g.user).map_or(self.header.user(), |name| name));
        let group = self.owners.group.get(x.group.or(&g.group).map_or(self.header.group(), |name| name));
        let xattrs = if matches!(kind, EntryKind::HardLink { .. }) {
            Xattrs::default()
        } else {
            self.xattrs(path, kind, &mut mode)
        };
        Metadata { mode, uid, gid, user, group, mtime, atime, xattrs }
    }

    /// Attributes and ACLs. An access ACL says anew what `mode` says.
    fn xattrs(&mut self, path: &[u8], kind: &EntryKind, mode: &mut u16) -> Xattrs {
        let (x, g) = (&self.extensions.local, self.global);
        let mut xattrs = Xattrs::default();
        if x.has_no_attributes() && g.has_no_attributes() && self.extensions.solaris_acl.is_none() {
            return xattrs;
        }
        let named: BTreeMap<_, _> = g.xattrs().chain(x.xattrs()).collect();
        for (name, value) in named {
            if let Err(e) = xattrs.insert(&name, value) {
                self.refuse(path, format!("the xattr '{}' is left out: {e}", escape(&name)));
            }
        }
        let solaris = match self.extensions.solaris_acl.as_deref().map(solaris::parse).transpose() {
            Ok(texts) => texts.unwrap_or_default(),
            Err(e) => {
                self.refuse(path, e.to_string());
                solaris::Texts::default()
            }
        };
        for (pax, solaris, name) in [
            (x.acl_access.or(&g.acl_access), solaris.access, ACL_ACCESS),
            (x.acl_default.or(&g.acl_default), solaris.default, ACL_DEFAULT),
        ] {
            let Some(text) = pax.map(|text| &**text).or(solaris.as_deref()) else { continue };
            match Acl::parse(text, self.options.resolve_user, self.options.resolve_group) {
                Err(e) => self.refuse(path, format!("its ACL is left out: {e}")),
                Ok(_) if name == ACL_DEFAULT && *kind != EntryKind::Directory => {
                    self.refuse(path, "its default ACL is left out: only directories have one");
                }
                Ok(_) if matches!(kind, EntryKind::Symlink { .. }) => {
                    self.refuse(path, "its ACL is left out: symbolic links have none");
                }
                Ok(acl) => {
                    if name == ACL_ACCESS {
                        // As with setfacl(1). bsdtar writes the group's entry into the header's mode, not the mask.
                        *mode = acl.apply_to_mode(*mode);
                        // The mode says the same; the kernel keeps no such ACL either.
                        if acl.is_minimal() {
                            continue;
                        }
                    }
                    if let Err(e) = xattrs.insert(name, acl.as_bytes()) {
                        self.refuse(path, format!("its ACL is left out: {e}"));
                    }
                }
            }
        }
        xattrs
    }

    fn leading_slash(&mut self, path: &[u8]) {
        if path.starts_with(b"/") && !std::mem::replace(self.slash_told, true) {
            self.warn(b"", "names in the archive begin with '/': it is left out");
        }
    }

    fn warn(&mut self, path: &[u8], message: impl Into<String>) {
        self.events.push_back(Event::Warning { path: path.into(), message: message.into() });
    }

    fn refuse(&mut self, path: &[u8], reason: impl Into<String>) {
        let reason = match self.events.len().cmp(&MAX_PROBLEMS) {
            Ordering::Less => reason.into(),
            Ordering::Equal => MORE_PROBLEMS.into(),
            Ordering::Greater => return,
        };
        self.events.push_back(Event::Refused { path: path.into(), reason });
    }
}

/// Whether a member of this type has payload in the archive at all. GNU tar 1.35.90 takes the size of the
/// others for 0, whatever their header says.
pub(super) fn has_payload(typeflag: u8) -> bool {
    !matches!(typeflag, b'1'..=b'6')
}

/// What may be a directory all the same, where its name ends in `/`: v7 has no type for them, and GNU tar and bsdtar go
/// by the slash in later dialects too. A directory has no payload, whatever its size says.
pub(super) fn is_plain_file(typeflag: u8) -> bool {
    matches!(typeflag, 0 | b'0' | b'7')
}

/// See [`is_plain_file`].
pub(super) fn is_directory_by_name(header: &Header<'_>, extensions: &Extensions) -> bool {
    is_plain_file(header.typeflag())
        && extensions.path().map_or_else(|| header.is_named_as_directory(), |path| path.ends_with(b"/"))
}

/// A hard link of a pax archive may carry the contents again (POSIX), and may only say so (older tars):
/// only the next block tells, as libarchive does it.
pub(super) fn may_have_payload(header: &Header<'_>, extensions: &Extensions) -> bool {
    header.typeflag() == b'1' && extensions.has_pax
}
