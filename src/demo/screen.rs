//! The terminal: a table that is drawn again in place, or plain lines where nobody looks at a terminal. It hides no cursor
//! and changes no mode, so there is nothing to put back when it ends.

use std::io::{self, Write};

use crate::demo::app::THREADS;
use crate::demo::board::{Board, Row, Side, Stage};
use crate::demo::table::{Paint, table, wait};
use crate::demo::words::{acted, orders, outcome, wrap};

/// Wider lines of text are hard to read.
const TEXT: usize = 100;
/// The phases' names in the summary.
const INDENT: usize = 14;

/// Columns and rows of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// How to show.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Draw in place; else plain lines.
    pub live: bool,
    /// Colours.
    pub paint: Paint,
}

/// Where the demonstration is shown.
pub struct Screen<W> {
    out: W,
    style: Style,
    /// Lines of the last drawing, and the size it was made for.
    drawn: Option<(usize, Size)>,
    /// Of the plain lines: which round, how many phases were announced and how many told to the end.
    told: (u32, usize, usize),
    told_mending: bool,
    hold: bool,
}

impl<W: Write> Screen<W> {
    /// Shows nothing yet. `hold` says that it will go on for ever.
    pub fn new(out: W, style: Style, hold: bool) -> Screen<W> {
        Screen { out, style, drawn: None, told: (0, 0, 0), told_mending: false, hold }
    }

    /// Says what it is about, and where the dashboard is.
    ///
    /// # Errors
    /// When it can't be written, as when nobody reads any more.
    pub fn begin(&mut self, board: &Board, size: Size) -> io::Result<()> {
        self.write(&self.head(board, size))
    }

    /// Shows how things are now.
    ///
    /// # Errors
    /// As [`Screen::begin`].
    pub fn update(&mut self, board: &Board, size: Size) -> io::Result<()> {
        if self.style.live { self.draw(board, size) } else { self.tell(board) }
    }

    /// The end: the table, if it was not drawn all along, and what it means.
    ///
    /// # Errors
    /// As [`Screen::begin`].
    pub fn end(&mut self, board: &Board, size: Size) -> io::Result<()> {
        let paint = self.style.paint;
        let mut text = String::new();
        let mut table = table(board, size.columns, paint);
        if self.style.live {
            text.push_str(&self.back(board, size));
        } else {
            text.push('\n');
        }
        table.push(String::new());
        for line in table {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&paint.dim("failed: share of the GETs; typical: half of all calls took at most this"));
        text.push_str("\n\n");
        let width = size.columns.min(TEXT).saturating_sub(INDENT).max(20);
        for row in &board.rows {
            let Some(sentence) = outcome(row) else { continue };
            let stopped = if row.stage == Stage::Done { "" } else { "Stopped early. " };
            text.push_str(&paragraph(paint, row.phase.name(), &format!("{stopped}{sentence}"), width));
        }
        if let Some(sentence) = orders(board) {
            text.push_str(&paragraph(paint, "POST", &sentence, width));
        }
        text.push_str(&format!("\n{}\n\n", paint.bold("The policies that did it")));
        for line in policies(&board.policies) {
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str("\nYour own: outrigger run --config FILE. README.md says how to point an app at it.\n");
        self.drawn = None;
        self.write(&text)
    }

    /// What stands above the table.
    fn head(&self, board: &Board, size: Size) -> String {
        let mut text = self.style.paint.bold("Outrigger between an app and an API that misbehaves");
        let about = format!(
            "All of it is real: an app of {THREADS} threads, its calls, the proxy and the API run here, on loopback. \
             Beside it the same app, which has no timeouts and no retries of its own, calls a twin of the API without \
             Outrigger. {}Ctrl-C ends it.",
            if self.hold { "Phases repeat. " } else { "" }
        );
        text.push('\n');
        for line in wrap(&about, size.columns.min(TEXT)) {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(&format!("\n{:INDENT$}http://{}/\n", "dashboard", board.dashboard));
        if self.hold {
            text.push_str(&format!("{:INDENT$}curl -i -x http://{} http://api.test/\n", "try it", board.proxy));
        }
        text.push('\n');
        text
    }

    /// Draws over what was drawn before.
    fn draw(&mut self, board: &Board, size: Size) -> io::Result<()> {
        let paint = self.style.paint;
        let mut lines = table(board, size.columns, paint);
        lines.push(String::new());
        lines.extend(now(board, size.columns, paint));
        // What is higher than the terminal can't be drawn over.
        lines.truncate(size.rows.saturating_sub(1).max(1));
        let mut text = self.back(board, size);
        for line in &lines {
            text.push_str(&format!("{line}\n"));
        }
        self.drawn = Some((lines.len(), size));
        self.write(&text)
    }

    /// Goes back to where the last drawing began, and clears what was there.
    fn back(&self, board: &Board, size: Size) -> String {
        match self.drawn {
            None => String::new(),
            Some((0, _)) => String::new(),
            Some((lines, drawn)) if drawn == size => format!("\x1b[{lines}A\r\x1b[J"),
            // The terminal has broken its lines anew: nobody knows where it began.
            Some(_) => format!("\x1b[2J\x1b[H{}", self.head(board, size)),
        }
    }

    /// Says what has begun and what has ended since the last time.
    fn tell(&mut self, board: &Board) -> io::Result<()> {
        if board.round != self.told.0 {
            self.told = (board.round, 0, 0);
        }
        let current = board.current().map(|row| row.phase);
        for (at, row) in board.rows.iter().enumerate() {
            let running = current == Some(row.phase);
            if at >= self.told.1 && running {
                self.told.1 = at + 1;
                self.write(&format!("{}: {}\n", row.phase.name(), row.phase.story()))?;
            }
            if at >= self.told.2 && at < self.told.1 && row.stage == Stage::Done {
                self.told.2 = at + 1;
                for line in result(row) {
                    self.write(&format!("  {line}\n"))?;
                }
            }
        }
        if board.mending && !self.told_mending {
            self.write(&format!("  {MENDING}\n"))?;
        }
        self.told_mending = board.mending;
        Ok(())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

const MENDING: &str = "the API is well again; waiting for the circuit's next probe";

/// What goes on, below the table.
fn now(board: &Board, columns: usize, paint: Paint) -> Vec<String> {
    let mut told: Vec<(&str, String)> = Vec::new();
    if let Some(row) = board.current() {
        let left = match row.stage {
            Stage::Running(left) => format!(", {:.0} s left", left.as_secs_f64().ceil()),
            Stage::Ending => ", last answers".to_owned(),
            Stage::Waiting | Stage::Done => String::new(),
        };
        told.push((row.phase.name(), format!("{}{left}", row.phase.story())));
        if let Some(measured) = &row.measured {
            told.extend(acted(&measured.acts));
            let stuck = measured.without.stuck;
            if stuck > 0 {
                told.push(("without", format!("{stuck} of the app's {THREADS} threads hang")));
            }
        }
    } else if board.mending {
        told.push(("", MENDING.to_owned()));
    }
    let width = columns.saturating_sub(INDENT + 2).max(20);
    let lines = told.into_iter().flat_map(|(name, text)| {
        let name = [name].into_iter().chain(std::iter::repeat(""));
        name.zip(wrap(&text, width)).map(|(name, line)| format!("  {name:INDENT$}{line}")).collect::<Vec<_>>()
    });
    lines.map(|line| paint.dim(&line)).collect()
}

/// The figures of one phase, for those who don't see the table.
fn result(row: &Row) -> Vec<String> {
    let Some(measured) = &row.measured else { return Vec::new() };
    let side = |name: &str, side: &Side| {
        let waits = side.waits;
        format!(
            "{name}: {} of {} GETs failed, typical {}, longest {}",
            side.figures.reads.failed,
            side.figures.reads.calls,
            wait(waits.typical, waits.typical_open),
            wait(waits.longest, waits.longest_open)
        )
    };
    let mut lines = vec![side("without Outrigger", &measured.without), side("with Outrigger", &measured.with)];
    lines.extend(acted(&measured.acts).into_iter().map(|(policy, text)| format!("{policy}: {text}")));
    lines
}

fn paragraph(paint: Paint, name: &str, text: &str, width: usize) -> String {
    let mut shown = String::new();
    for (at, line) in wrap(text, width).into_iter().enumerate() {
        let name = if at == 0 { paint.bold(&format!("{name:INDENT$}")) } else { " ".repeat(INDENT) };
        shown.push_str(&format!("{name}{line}\n"));
    }
    shown
}

/// The part of the configuration that an operator would write.
fn policies(text: &str) -> impl Iterator<Item = &str> {
    let ours = |line: &&str| line.starts_with(' ') || line.starts_with("defaults") || line.starts_with("upstreams");
    text.lines().filter(ours)
}
