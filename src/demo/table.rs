//! The columns: what the app saw without Outrigger and with it, and what the upstream got. As many as the width allows.

use std::time::Duration;

use crate::demo::board::{Board, Row, Side, Stage};

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub bool);

impl Paint {
    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A column below one of the three headings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Calls,
    Failed,
    Typical,
    Longest,
    PerCall,
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Column::Calls => "calls",
            Column::Failed => "failed",
            Column::Typical => "typical",
            Column::Longest => "longest",
            Column::PerCall => "per call",
        }
    }

    fn width(self) -> usize {
        match self {
            Column::Calls => 6,
            Column::Failed => 6,
            Column::Typical | Column::Longest => 7,
            Column::PerCall => 8,
        }
    }
}

/// Whose columns they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Without,
    With,
    Upstream,
}

/// Of the column with the phases' names, mark included.
const NAME: usize = 14;
/// Between groups.
const GAP: usize = 2;

/// What is shown at most, and what is left out first where there is no room for it.
fn layouts() -> [Vec<(Group, &'static str, Vec<Column>)>; 4] {
    use Column::{Calls, Failed, Longest, PerCall, Typical};
    let (without, with, upstream) = ("without Outrigger", "with Outrigger", "upstream got");
    [
        vec![
            (Group::Without, without, vec![Calls, Failed, Typical, Longest]),
            (Group::With, with, vec![Calls, Failed, Typical, Longest]),
            (Group::Upstream, upstream, vec![Calls, PerCall, Failed]),
        ],
        vec![
            (Group::Without, without, vec![Failed, Typical, Longest]),
            (Group::With, with, vec![Failed, Typical, Longest]),
            (Group::Upstream, upstream, vec![PerCall, Failed]),
        ],
        vec![
            (Group::Without, "without", vec![Failed, Typical]),
            (Group::With, "with Outrigger", vec![Failed, Typical]),
            (Group::Upstream, "upstream", vec![PerCall]),
        ],
        vec![(Group::Without, "alone", vec![Failed]), (Group::With, "with it", vec![Failed])],
    ]
}

fn width(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width()).sum::<usize>() + columns.len() - 1
}

/// The table, in lines that fit the width (characters) where at all possible.
pub fn table(board: &Board, within: usize, paint: Paint) -> Vec<String> {
    let layouts = layouts();
    let needed = |layout: &Vec<(Group, &str, Vec<Column>)>| {
        NAME + layout.iter().map(|(_, _, columns)| GAP + width(columns)).sum::<usize>()
    };
    let layout = layouts.iter().find(|layout| needed(layout) <= within).unwrap_or(&layouts[3]);
    let mut heads = format!("{:NAME$}", "");
    let mut columns = format!("{:NAME$}", "");
    for (_, title, below) in layout {
        let width = width(below);
        heads.push_str(&format!("{:GAP$}{title:^width$}", ""));
        let names: Vec<String> = below.iter().map(|c| format!("{:>1$}", c.heading(), c.width())).collect();
        columns.push_str(&format!("{:GAP$}{}", "", names.join(" ")));
    }
    let mut lines = vec![paint.bold(heads.trim_end()), paint.dim(&columns)];
    for row in &board.rows {
        let mark = match row.stage {
            Stage::Running(_) | Stage::Ending => ">",
            Stage::Waiting | Stage::Done => " ",
        };
        let name = format!("{mark} {:1$}", row.phase.name(), NAME - 2);
        let mut line = match row.stage {
            Stage::Running(_) | Stage::Ending => paint.bold(&name),
            Stage::Waiting => paint.dim(&name),
            Stage::Done => name,
        };
        for (group, _, below) in layout {
            let cells: Vec<String> = below.iter().map(|column| cell(row, *group, *column, paint)).collect();
            line.push_str(&format!("{:GAP$}{}", "", cells.join(" ")));
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn cell(row: &Row, group: Group, column: Column, paint: Paint) -> String {
    let width = column.width();
    let Some(measured) = &row.measured else { return " ".repeat(width) };
    let side = |side: &Side| match column {
        Column::Calls => (side.figures.reads.calls.to_string(), None),
        Column::Failed => (percent(side.failed()), colour(side)),
        Column::Typical => (wait(side.waits.typical, side.waits.typical_open), None),
        Column::Longest => (wait(side.waits.longest, side.waits.longest_open), None),
        Column::PerCall => (String::new(), None),
    };
    let (text, colour) = match group {
        Group::Without => side(&measured.without),
        Group::With => side(&measured.with),
        Group::Upstream => match column {
            Column::Calls => (measured.upstream.reads.requests.to_string(), None),
            Column::Failed => (percent(measured.upstream_failed()), None),
            Column::PerCall => (measured.per_call().map_or("-".to_owned(), |n| format!("{n:.2}")), None),
            Column::Typical | Column::Longest => (String::new(), None),
        },
    };
    let text = format!("{text:>width$}");
    match colour {
        Some(colour) => paint.with(colour, &text),
        None => text,
    }
}

/// Green: next to nothing failed. Yellow: little did, or nearly all that did was refused at once by Outrigger. Red: the rest.
fn colour(side: &Side) -> Option<&'static str> {
    let reads = &side.figures.reads;
    let share = side.failed()?;
    let colour = if share < 0.005 {
        "32"
    } else if share < 0.05 || reads.refused * 10 >= reads.failed * 9 {
        "33"
    } else {
        "31"
    };
    Some(colour)
}

/// `29.8%`; `-` where nothing was counted.
pub fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share >= 0.9995 => "100%".to_owned(),
        Some(share) => format!("{:.1}%", share * 100.0),
    }
}

/// `20 ms`, `2.1 s`; `>6.0 s` where it has not ended; `-` where there is none.
pub fn wait(wait: Duration, open: bool) -> String {
    if wait.is_zero() {
        return "-".to_owned();
    }
    let mark = if open { ">" } else { "" };
    let ms = wait.as_secs_f64() * 1000.0;
    if ms < 9.95 {
        format!("{mark}{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{mark}{ms:.0} ms")
    } else {
        format!("{mark}{:.1} s", ms / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        Board::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap(), "".into())
    }

    #[test]
    fn a_table_fits_the_width_and_every_phase_has_its_line() {
        for within in [40, 50, 60, 79, 80, 100, 120, 200] {
            let lines = table(&board(), within, Paint(false));
            assert_eq!(lines.len(), 8);
            assert!(lines.iter().all(|line| line.chars().count() <= within), "{within}: {lines:#?}");
        }
        assert!(table(&board(), 79, Paint(false))[1].contains("per call failed"));
        assert!(table(&board(), 120, Paint(false))[1].contains("calls"));
    }

    #[test]
    fn without_colour_there_is_no_escape() {
        let all = |paint| table(&board(), 80, paint).join("\n");
        assert!(!all(Paint(false)).contains('\x1b') && all(Paint(true)).contains('\x1b'));
    }

    #[test]
    fn times_and_shares_are_short() {
        let ms = Duration::from_millis;
        assert_eq!(wait(Duration::from_micros(412), false), "0.4 ms");
        assert_eq!((wait(ms(20), false), wait(ms(999), false)), ("20 ms".to_owned(), "999 ms".to_owned()));
        assert_eq!((wait(ms(6040), true), wait(Duration::ZERO, false)), (">6.0 s".to_owned(), "-".to_owned()));
        assert_eq!(
            (percent(Some(0.298)), percent(Some(1.0)), percent(None)),
            ("29.8%".into(), "100%".into(), "-".into())
        );
    }
}
