//! The live screen. On a terminal it repaints in place and leaves the terminal as it was; elsewhere it prints a line each
//! time. Never reads keys: Ctrl-C ends it.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::Done;
use super::look::picture;
use crate::args::Format;
use crate::client::Session;
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::render::status::{Picture, frame, line, rates};
use crate::tree::{self, Tree};

/// The shortest pause between two looks.
const SHORTEST: Duration = Duration::from_millis(200);
/// Other screen, no cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal that is given back when dropped.
struct Screen;

impl Screen {
    fn take() -> Result<Self, Failure> {
        write(ENTER).map(|()| Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody to tell if this fails.
        let _ = write(LEAVE);
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// As a document or an object a line.
fn tree(picture: &Picture, (reads, writes): (f64, f64)) -> Tree {
    Tree::map([
        ("status", tree::of(&picture.status)),
        ("reads_per_s", Tree::Float(reads)),
        ("writes_per_s", Tree::Float(writes)),
        ("nodes", Tree::List(picture.nodes.iter().map(tree::of).collect())),
        ("dataplanes", Tree::List(picture.dataplanes.iter().map(tree::of).collect())),
    ])
}

pub(super) async fn run(out: Out, session: &mut Session, interval: Duration, once: bool) -> Done {
    let interval = interval.max(SHORTEST);
    let is_people = matches!(out.format, Format::Table | Format::Wide);
    let live = !once && is_people && std::io::stdout().is_terminal();
    let stop = |kind| signal(kind).map_err(|error| Failure::new(Exit::Unavailable, error.to_string()));
    let (mut int, mut term) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    let mut before = (picture(session).await?, Instant::now());
    let _screen = if live { Some(Screen::take()?) } else { None };
    if live {
        write(&painted(&frame(&before.0, (0.0, 0.0), out.color), size()))?;
    }
    loop {
        tokio::select! {
            biased;
            _ = int.recv() => return Ok(Exit::Ok),
            _ = term.recv() => return Ok(Exit::Ok),
            () = tokio::time::sleep(interval) => {}
        }
        let now = (picture(session).await?, Instant::now());
        let rates = rates(&before.0, &now.0, now.1.duration_since(before.1).as_secs_f64());
        match (live, once, is_people) {
            (true, ..) => write(&painted(&frame(&now.0, rates, out.color), size()))?,
            (false, true, true) => out.data(&frame(&now.0, rates, out.color))?,
            (false, false, true) => out.data(&line(&now.0, rates))?,
            (false, _, false) => out.one(&tree(&now.0, rates), &now.0.status.primary)?,
        }
        if once {
            return Ok(Exit::Ok);
        }
        before = now;
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// A frame over the one before: no line longer than the screen, none below it, the rest of each line erased.
fn painted(frame: &str, (columns, rows): (usize, usize)) -> String {
    let mut out = String::from("\x1b[H");
    for (i, line) in frame.lines().take(rows).enumerate() {
        if i > 0 {
            out.push_str("\r\n");
        }
        out.push_str(&clipped(line, columns));
        out.push_str("\x1b[0m\x1b[K");
    }
    out.push_str("\x1b[J");
    out
}

/// The part of a line that fits; colours take no room.
fn clipped(line: &str, columns: usize) -> String {
    let (mut out, mut room, mut in_code) = (String::new(), columns, false);
    for c in line.chars() {
        if c == '\x1b' || in_code {
            in_code = c != 'm';
            out.push(c);
        } else if room > 0 {
            room -= 1;
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_screen() {
        assert_eq!(painted("abcdef\nx\ny", (3, 2)), "\x1b[Habc\x1b[0m\x1b[K\r\nx\x1b[0m\x1b[K\x1b[J");
        assert_eq!(clipped("\x1b[31mabcd\x1b[0m", 2), "\x1b[31mab\x1b[0m");
    }
}
