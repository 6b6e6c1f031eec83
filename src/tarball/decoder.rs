//! The state machine: bytes to events.

use std::collections::VecDeque;

use super::event::{End, Event, Options, Stop};
use super::header::{BLOCK, Block, Header, padding};
use super::key::{MAX_ACL, MAX_PATH};
use super::member::{
    Builder, Extensions, Owners, Shape, has_payload, is_directory_by_name, is_plain_file, may_have_payload,
};
use super::pax;
use super::pax::Fault;
use super::sparse::{BadMap, Lines, Next, OldGnu, Segments};

/// An empty archive is padded to a record, which is 1 MiB at the very most with usual tools. More zeros than this are
/// those of a disk image or of /dev/zero.
const MAX_LEADING_ZEROS: u64 = 64 << 20;

const NOTHING_BUT_ZEROS: &str = "this is no tar archive: there is nothing but zeros in its first 64 MiB";

const DATA_BEHIND: &str = "there is data behind the end marker: it is left out (--concatenated reads on)";

/// Decodes an archive from bytes that come in any pieces.
#[derive(Debug)]
pub struct Decoder {
    options: Options,
    state: State,
    /// The block being gathered where its bytes come in pieces.
    block: Block,
    filled: usize,
    position: u64,
    events: VecDeque<Event<'static>>,
    extensions: Extensions,
    global: pax::Values,
    zero_blocks: u8,
    members: bool,
    slash_told: bool,
    owners: Owners,
    /// The member before had a malformed header, which may have said another size.
    doubtful: bool,
}

#[derive(Debug)]
enum State {
    /// A header, or an end marker, is next.
    Header,
    /// The records of an extended header.
    Pax {
        parser: pax::Parser,
        global: bool,
        left: u64,
    },
    /// A GNU long name.
    Long {
        link: bool,
        name: Vec<u8>,
        left: u64,
    },
    /// An ACL of Solaris.
    Acl {
        text: Vec<u8>,
        left: u64,
    },
    /// More blocks of an old GNU sparse map.
    OldSparse {
        header: Box<Block>,
        map: OldGnu,
        stored: u64,
    },
    /// The pax 1.0 sparse map at the front of the payload, and what is left of that.
    Lines {
        header: Box<Block>,
        lines: Lines,
        payload: u64,
    },
    /// Stored bytes of an entry, after `lead` bytes that are none.
    Data {
        lead: u64,
        left: u64,
    },
    /// Bytes that nobody wants.
    Skip {
        left: u64,
    },
    /// What follows a hard link that says it has payload: that, or a header.
    Peek {
        size: u64,
    },
    /// Behind the end marker.
    After {
        told: bool,
    },
    Stopped(Stop),
}

impl Decoder {
    /// At the beginning of an archive.
    pub fn new(options: Options) -> Self {
        Decoder {
            options,
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            position: 0,
            events: VecDeque::new(),
            extensions: Extensions::default(),
            global: pax::Values::default(),
            zero_blocks: 0,
            members: false,
            slash_told: false,
            owners: Owners::default(),
            doubtful: false,
        }
    }

    /// Bytes of the archive taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a header has been read. Until then it is open whether this is a tar archive at all.
    pub fn has_members(&self) -> bool {
        self.members
    }

    /// Whether zeros are all that came, as many as an end marker has. If nothing follows, it is an empty archive.
    pub fn is_empty_so_far(&self) -> bool {
        !self.members && self.zero_blocks > 1 && self.gathered_zeros() && matches!(self.state, State::Header)
    }

    /// Takes from `input` until there is something to tell. `None`: it wants more input.
    pub fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Stop> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match &mut self.state {
                State::Stopped(stop) => return Err(stop.clone()),
                State::Skip { left: 0 } => self.state = State::Header,
                State::Data { lead: 0, left: 0 } => {
                    self.skip_payload(0);
                    return Ok(Some(Event::EntryEnd));
                }
                State::Pax { left: 0, .. } => self.end_pax(),
                State::Long { left: 0, .. } => self.end_long(),
                State::Acl { left: 0, text } => {
                    self.extensions.solaris_acl = Some(std::mem::take(text));
                    self.skip_payload(0);
                }
                State::Lines { payload: 0, lines, .. } => {
                    lines.cut_short();
                    self.end_lines();
                }
                _ if input.is_empty() => return Ok(None),
                State::Data { lead: lead @ 1.., .. } => {
                    take(input, lead, &mut self.position);
                }
                State::Data { left, .. } => {
                    return Ok(Some(Event::Data(take(input, left, &mut self.position))));
                }
                State::Skip { left } => {
                    take(input, left, &mut self.position);
                }
                State::Pax { parser, global, left } => {
                    let values = if *global { &mut self.global } else { &mut self.extensions.local };
                    let mut piece = take(input, left, &mut self.position);
                    match parser.feed(&mut piece, values) {
                        Ok(()) => {}
                        // Where it is wrong, however long the piece is.
                        Err(Fault::Size(reason)) => self.stop_at(self.position - piece.len() as u64, reason),
                        Err(Fault::Record(reason)) => {
                            let (global, left) = (*global, *left);
                            self.malformed_pax(global, reason, left);
                        }
                    }
                }
                State::Long { name, left, .. } => {
                    let piece = take(input, left, &mut self.position);
                    hold(name, piece, MAX_PATH);
                }
                State::Acl { text, left } => {
                    let piece = take(input, left, &mut self.position);
                    hold(text, piece, MAX_ACL);
                }
                State::Lines { lines, payload, .. } => {
                    let n = (*payload).min(input.len() as u64) as usize;
                    let (used, ended) = lines.feed(&input[..n]);
                    *payload -= used as u64;
                    self.position += used as u64;
                    *input = &input[used..];
                    if ended {
                        self.end_lines();
                    }
                }
                State::After { told } => {
                    if !*told && input.iter().any(|&b| b != 0) {
                        *told = true;
                        self.warn(DATA_BEHIND);
                    }
                    self.position += input.len() as u64;
                    *input = &[];
                }
                State::Header | State::Peek { .. } | State::OldSparse { .. } => {
                    if self.filled == 0
                        && let Some((block, rest)) = input.split_first_chunk::<BLOCK>()
                    {
                        *input = rest;
                        self.position += BLOCK as u64;
                        self.take_block(block);
                    } else if let Some(block) = self.gather(input) {
                        self.take_block(&block);
                    }
                }
            }
        }
    }

    /// So many of the next bytes the decoder would only pass on or drop. Whoever can, may skip them.
    pub fn skippable(&self) -> u64 {
        match self.state {
            _ if !self.events.is_empty() => 0,
            State::Data { lead, left, .. } => lead + left,
            State::Skip { left } => left,
            _ => 0,
        }
    }

    /// The next `n` bytes, no more than [`Decoder::skippable`], are not given. Returns how many of them are
    /// stored bytes of an entry.
    pub fn skip(&mut self, n: u64) -> u64 {
        let n = n.min(self.skippable());
        self.position += n;
        match &mut self.state {
            State::Data { lead, left, .. } => {
                let first = n.min(*lead);
                *lead -= first;
                *left -= n - first;
                n - first
            }
            State::Skip { left } => {
                *left -= n;
                0
            }
            _ => 0,
        }
    }

    /// The bytes are over.
    pub fn finish(&self) -> End {
        match &self.state {
            State::After { .. } => End::Complete,
            State::Header if self.zero_blocks > 1 && (self.filled == 0 || !self.members && self.gathered_zeros()) => {
                End::Complete
            }
            State::Header if self.zero_blocks > 0 && self.gathered_zeros() => End::LoneZeroBlock,
            State::Header if self.filled > 0 => End::Cut("the stream ended inside a header"),
            State::Header | State::Peek { .. } | State::Skip { left: 0 } if self.extensions.any() => {
                End::Cut("the stream ended between an extended header and its member")
            }
            State::Header if self.position == 0 => End::Cut("the stream ended before its first byte"),
            State::Header | State::Peek { .. } | State::Skip { left: 0 } => {
                End::Cut("the stream ended without an end marker")
            }
            State::Pax { .. } | State::Long { .. } | State::Acl { .. } => {
                End::Cut("the stream ended inside an extended header")
            }
            State::OldSparse { .. } | State::Lines { .. } => End::Cut("the stream ended inside a sparse map"),
            State::Data { left, .. } if *left > 0 => End::Cut("the stream ended inside a file"),
            State::Data { .. } | State::Skip { .. } => End::Cut("the stream ended between two entries"),
            State::Stopped(_) => End::Cut("the stream could not be followed"),
        }
    }

    /// Whether what there is of the next block is zero.
    fn gathered_zeros(&self) -> bool {
        self.block[..self.filled].iter().all(|&b| b == 0)
    }

    fn stop(&mut self, reason: impl Into<String>) {
        self.state = State::Stopped(Stop { offset: self.position, reason: reason.into() });
    }

    fn stop_at(&mut self, offset: u64, reason: impl Into<String>) {
        self.state = State::Stopped(Stop { offset, reason: reason.into() });
    }

    /// The next block, whose bytes come in pieces, when it is whole.
    fn gather(&mut self, input: &mut &[u8]) -> Option<Block> {
        let n = (BLOCK - self.filled).min(input.len());
        self.block[self.filled..self.filled + n].copy_from_slice(&input[..n]);
        self.filled += n;
        self.position += n as u64;
        *input = &input[n..];
        (self.filled == BLOCK).then(|| {
            self.filled = 0;
            self.block
        })
    }

    fn take_block(&mut self, block: &Block) {
        if matches!(self.state, State::Header) {
            return self.take_header(block);
        }
        match std::mem::replace(&mut self.state, State::Header) {
            State::Peek { size } => {
                if *block == [0; BLOCK] || Header::parse(block).is_some() {
                    self.take_header(block);
                } else {
                    self.skip_payload(size.saturating_sub(BLOCK as u64));
                }
            }
            State::OldSparse { header, mut map, stored } => match map.block(block) {
                Ok(Next::Block) => self.state = State::OldSparse { header, map, stored },
                Ok(Next::Payload) => {
                    if let Some(header) = Header::parse(&header) {
                        self.end_old_sparse(&header, map.segments, stored);
                    }
                }
                Err(endless) => self.stop(endless.to_string()),
            },
            _ => self.take_header(block),
        }
    }

    fn take_header(&mut self, block: &Block) {
        let at = self.position - BLOCK as u64;
        if *block == [0; BLOCK] {
            if self.extensions.any() {
                self.warn("an extended header has no member behind it");
                self.extensions = Extensions::default();
            }
            self.zero_blocks = (self.zero_blocks + 1).min(2);
            if !self.members && self.position > MAX_LEADING_ZEROS {
                return self.stop_at(0, NOTHING_BUT_ZEROS);
            }
            // Disk images begin with zeros too: without a member, only the end of the stream makes an empty archive.
            if self.zero_blocks == 2 && self.members && !self.options.concatenated {
                self.end_of_archive(false);
            }
            return;
        }
        let header = Header::parse(block);
        if self.zero_blocks > 0 && !self.options.concatenated && (self.members || header.is_some()) {
            // GNU tar, libarchive and Python all take one zero block for the end.
            self.warn(if self.zero_blocks == 1 {
                "a lone zero block is taken for the end marker; there is data behind it (--concatenated reads on)"
            } else {
                DATA_BEHIND
            });
            return self.end_of_archive(true);
        }
        let Some(header) = header else {
            let reason = match (self.members, self.zero_blocks) {
                _ if self.doubtful => {
                    "this is no tar header: its checksum is wrong; the entry before it has a malformed pax header, which \
                     may have given another size"
                }
                (true, _) => "this is no tar header: its checksum is wrong",
                (false, 0) => "this is no tar archive: the checksum of its first header is wrong",
                (false, _) => "this is no tar archive: it begins with zeros, and other data follows",
            };
            return self.stop_at(at, reason);
        };
        self.zero_blocks = 0;
        self.members = true;
        self.doubtful = false;
        let typeflag = header.typeflag();
        match typeflag {
            b'x' | b'X' | b'g' | b'L' | b'K' | b'A' => {
                let Some(size) = header.size() else {
                    return self.stop_at(at, "the size of an extended header is no number");
                };
                self.state = match typeflag {
                    b'L' | b'K' => State::Long { link: typeflag == b'K', name: Vec::new(), left: size },
                    b'A' => State::Acl { text: Vec::new(), left: size },
                    b'g' => State::Pax { parser: pax::Parser::new(true), global: true, left: size },
                    _ => {
                        self.extensions.begin_pax();
                        State::Pax { parser: pax::Parser::new(false), global: false, left: size }
                    }
                };
            }
            _ => self.take_member(block, &header, at),
        }
    }

    fn take_member(&mut self, block: &Block, header: &Header<'_>, at: u64) {
        let typeflag = header.typeflag();
        let pax_size = self.extensions.local.size.get().copied();
        let is_directory = is_directory_by_name(header, &self.extensions);
        let may_have = may_have_payload(header, &self.extensions);
        self.doubtful = self.extensions.local.malformed;
        let size = if (has_payload(typeflag) && !is_directory) || may_have {
            match pax_size.or_else(|| header.size()) {
                Some(size) => size,
                None => return self.stop_at(at, "the size of a member is no number"),
            }
        } else {
            0
        };
        match typeflag {
            b'S' => {
                let (map, next) = OldGnu::begin(header);
                match next {
                    Next::Block => self.state = State::OldSparse { header: Box::new(*block), map, stored: size },
                    Next::Payload => self.end_old_sparse(header, map.segments, size),
                }
            }
            b'V' if !self.doubtful => {
                let label = self.extensions.long_path.take().unwrap_or_else(|| header.path().into_owned());
                self.events.push_back(Event::Label(label));
                self.extensions = Extensions::default();
                self.skip_payload(size);
            }
            b'M' | b'N' => {
                let reason = match typeflag {
                    b'M' => "it is the rest of a file whose beginning is on another volume",
                    _ => "it is a list of renames of old GNU tar",
                };
                self.refuse(header, reason.into(), size);
            }
            _ if is_plain_file(typeflag) && !is_directory && self.extensions.local.sparse.is_present() => {
                self.pax_sparse(block, header, size);
            }
            _ => self.member(header, Shape { stored: size, sparse: None }, 0, size),
        }
    }

    fn pax_sparse(&mut self, block: &Block, header: &Header<'_>, payload: u64) {
        let sparse = &mut self.extensions.local.sparse;
        match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => {
                let (header, lines) = (Box::new(*block), Lines::default());
                self.state = State::Lines { header, lines, payload };
            }
            (None | Some(0), _) => {
                let segments = Segments::from_numbers(&std::mem::take(&mut sparse.numbers), sparse.broken);
                self.sparse_member(header, segments, self.extensions.local.sparse.size, payload, 0);
            }
            (major, minor) => {
                let number = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
                let reason = format!("its sparse format {}.{} is unknown", number(major), number(minor));
                self.refuse(header, reason, payload);
            }
        }
    }

    fn end_lines(&mut self) {
        if let State::Lines { header, lines, payload } = std::mem::replace(&mut self.state, State::Header) {
            let lead = padding(self.position).min(payload);
            let size = self.extensions.local.sparse.size.filter(|_| !self.extensions.local.sparse.broken);
            if let Some(header) = Header::parse(&header) {
                self.sparse_member(&header, lines.segments, size, payload, lead);
            }
        }
    }

    fn end_old_sparse(&mut self, header: &Header<'_>, segments: Segments, stored: u64) {
        self.sparse_member(header, segments, header.real_size(), stored, 0);
    }

    /// `payload` bytes are left in the archive, the first `lead` of them padding of the map.
    fn sparse_member(&mut self, header: &Header<'_>, segments: Segments, size: Option<u64>, payload: u64, lead: u64) {
        let stored = payload - lead;
        let map = match size {
            None => Err(BadMap::NoSize),
            Some(size) => segments.into_map(size, stored),
        };
        match map {
            Ok(map) => {
                let shape = Shape { stored: map.stored_len(), sparse: Some(map) };
                self.member(header, shape, lead, payload);
            }
            Err(bad) => self.refuse(header, bad.to_string(), payload),
        }
    }

    /// Tells of a member with all that its headers said.
    fn member(&mut self, header: &Header<'_>, shape: Shape, lead: u64, payload: u64) {
        let extensions = &self.extensions;
        let peek = may_have_payload(header, extensions) && payload > 0;
        let mut mended = VecDeque::new();
        let builder = Builder {
            header,
            extensions,
            global: &self.global,
            options: &self.options,
            slash_told: &mut self.slash_told,
            owners: &mut self.owners,
            events: &mut mended,
        };
        let raw = builder.raw_path();
        let built = builder.build(&raw, shape);
        let offset = self.position + lead;
        // A dumpdir has payload that is no contents.
        let stored = built.as_ref().map_or(0, |entry| entry.kind.stored_len());
        match built {
            Ok(entry) => {
                self.events.push_back(Event::Entry { entry: Box::new(entry), offset });
                if stored == 0 {
                    self.events.push_back(Event::EntryEnd);
                }
            }
            Err(why) => self.events.push_back(Event::Refused { path: raw.to_vec(), reason: why.to_string() }),
        }
        self.events.append(&mut mended);
        for reason in &extensions.local.refused {
            self.events.push_back(Event::Refused { path: raw.to_vec(), reason: reason.clone() });
        }
        for message in &extensions.local.warnings {
            self.events.push_back(Event::Warning { path: raw.to_vec(), message: message.clone() });
        }
        // Most members have none.
        if self.extensions.any() {
            self.extensions = Extensions::default();
        }
        if peek {
            self.state = State::Peek { size: payload };
        } else if stored > 0 {
            self.state = State::Data { lead, left: stored };
        } else {
            self.skip_payload(payload);
        }
    }

    fn refuse(&mut self, header: &Header<'_>, reason: String, payload: u64) {
        let extensions = std::mem::take(&mut self.extensions);
        let mut none = VecDeque::new();
        let path = Builder {
            header,
            extensions: &extensions,
            global: &self.global,
            options: &self.options,
            slash_told: &mut self.slash_told,
            owners: &mut self.owners,
            events: &mut none,
        }
        .raw_path()
        .into_owned();
        self.events.push_back(Event::Refused { path, reason });
        self.skip_payload(payload);
    }

    /// Passes over what is left of a payload, and its padding: headers stand at multiples of the block.
    fn skip_payload(&mut self, left: u64) {
        self.state = State::Skip { left: left + padding(self.position + left) };
    }

    fn end_pax(&mut self) {
        let State::Pax { parser, global, .. } = std::mem::replace(&mut self.state, State::Header) else { return };
        match parser.finish() {
            Ok(()) => self.take_pax(global, 0),
            Err(Fault::Record(reason)) => self.malformed_pax(global, reason, 0),
            Err(Fault::Size(reason)) => self.stop(reason),
        }
    }

    /// A pax header has been read; `left` bytes of it do not count.
    fn take_pax(&mut self, global: bool, left: u64) {
        let values = if global { &mut self.global } else { &mut self.extensions.local };
        if let Some(label) = values.label.take() {
            self.events.push_back(Event::Label(label.into()));
        }
        if global {
            for reason in values.refused.drain(..) {
                self.events.push_back(Event::Refused { path: Vec::new(), reason });
            }
            for message in values.warnings.drain(..) {
                self.events.push_back(Event::Warning { path: Vec::new(), message });
            }
        }
        self.skip_payload(left);
    }

    /// A record is malformed, with `left` bytes of the header behind what has been taken.
    fn malformed_pax(&mut self, global: bool, reason: &str, left: u64) {
        if global {
            let reason = format!("a global pax header is malformed ({reason}): the rest of it is left out");
            self.events.push_back(Event::Refused { path: Vec::new(), reason });
        } else {
            self.extensions.local.lose_member(format!("its pax header is malformed: {reason}"));
        }
        self.take_pax(global, left);
    }

    fn end_long(&mut self) {
        let State::Long { link, name, .. } = std::mem::replace(&mut self.state, State::Header) else { return };
        if name.len() > MAX_PATH {
            self.extensions.too_long = true;
        }
        let name = Some(super::header::until_nul(&name).to_vec());
        if link {
            self.extensions.long_link = name;
        } else {
            self.extensions.long_path = name;
        }
        self.skip_payload(0);
    }

    fn end_of_archive(&mut self, told: bool) {
        self.events.push_back(Event::EndOfArchive);
        self.state = State::After { told };
    }

    fn warn(&mut self, message: &str) {
        self.events.push_back(Event::Warning { path: Vec::new(), message: message.into() });
    }
}

/// Holds more of what is `most` bytes long: one byte beyond that is enough to know that it is too long.
fn hold(held: &mut Vec<u8>, piece: &[u8], most: usize) {
    let room = (most + 1).saturating_sub(held.len());
    held.extend_from_slice(&piece[..piece.len().min(room)]);
}

/// The next piece of at most `left` bytes.
fn take<'a>(input: &mut &'a [u8], left: &mut u64, position: &mut u64) -> &'a [u8] {
    let n = (*left).min(input.len() as u64) as usize;
    let (piece, rest) = input.split_at(n);
    *input = rest;
    *left -= n as u64;
    *position += n as u64;
    piece
}
