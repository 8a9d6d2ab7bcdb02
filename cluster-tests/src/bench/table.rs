//! The report, as Markdown.

use std::{fmt::Write as _, time::Duration};

use super::{
    load::Figures,
    median,
    noop::{self, Round},
    started::Started,
    submit::Row,
};

/// Rows of cells under a header, columns aligned.
#[must_use]
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}"));
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let mut text = line(header.to_vec());
    let rule = widths.iter().map(|&width| "-".repeat(width - 1) + ":").collect::<Vec<_>>();
    text.push_str(&line(rule.iter().map(String::as_str).collect()));
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Writes per second.
#[must_use]
pub fn submissions(rows: &[Row]) -> String {
    let of = |figures: &[Figures], get: fn(&Figures) -> f64| median(&figures.iter().map(get).collect::<Vec<_>>());
    let latency = |figures: &[Figures]| format!("{:.2} / {:.2}", of(figures, |f| f.p50_ms), of(figures, |f| f.p99_ms));
    let spent =
        |figures: &[Figures]| format!("{:.0} + {:.0}", of(figures, |f| f.servers_us), of(figures, |f| f.clients_us));
    let cells = rows.iter().map(|row| {
        let (hodei, etcd) = (of(&row.hodei, |f| f.per_second), of(&row.etcd, |f| f.per_second));
        let errors: u64 = row.hodei.iter().chain(&row.etcd).map(|f| f.errors).sum();
        vec![
            row.clients.to_string(),
            format!("{hodei:.0}"),
            format!("{etcd:.0}"),
            if etcd > 0.0 { format!("{:.2}", hodei / etcd) } else { "-".to_owned() },
            latency(&row.hodei),
            latency(&row.etcd),
            spent(&row.hodei),
            spent(&row.etcd),
            errors.to_string(),
        ]
    });
    let header = [
        "clients",
        "hodei/s",
        "etcd/s",
        "ratio",
        "hodei p50 / p99 ms",
        "etcd p50 / p99 ms",
        "hodei CPU us",
        "etcd CPU us",
        "errors",
    ];
    render(&header, &cells.collect::<Vec<_>>())
}

/// Submission to process.
#[must_use]
pub fn started(figures: &Started) -> String {
    let Started { samples, p50_ms, p99_ms, max_ms } = figures;
    let row = vec![samples.to_string(), format!("{p50_ms:.2}"), format!("{p99_ms:.2}"), format!("{max_ms:.2}")];
    render(&["jobs", "median ms", "p99 ms", "max ms"], &[row])
}

/// Jobs that do nothing.
#[must_use]
pub fn noop(figures: &noop::Figures) -> String {
    let of = |rounds: &[Round], get: fn(&Round) -> f64| median(&rounds.iter().map(get).collect::<Vec<_>>());
    let alone = of(&figures.spawn, Round::slot_ms);
    let row = |name: &str, rounds: &[Round]| {
        let cpu = [0, 1, 2].map(|part| median(&rounds.iter().map(|round| round.cpu_us[part]).collect::<Vec<_>>()));
        let submitted = of(rounds, |round| round.submitted_per_second);
        let [start, end] = [0, 1].map(|at| median(&rounds.iter().map(|round| round.stages_ms[at]).collect::<Vec<_>>()));
        let rest = of(rounds, Round::slot_ms) - start - end;
        vec![
            name.to_owned(),
            format!("{:.0}", of(rounds, |round| round.per_second)),
            format!("{:.2}", of(rounds, Round::slot_ms)),
            format!("{:.2}", of(rounds, Round::slot_ms) - alone),
            if end > 0.0 { format!("{start:.1} + {end:.1} + {rest:.1}") } else { "-".to_owned() },
            if submitted > 0.0 { format!("{submitted:.0}") } else { "-".to_owned() },
            cpu.map(|cpu| format!("{cpu:.0}")).join(" + "),
        ]
    };
    let mut rows = vec![row("spawn and wait", &figures.spawn), row("hodei", &figures.hodei)];
    rows.extend(figures.hyperqueue.iter().map(|rounds| row("hyperqueue", rounds)));
    render(&["", "jobs/s", "ms of a slot", "overhead ms", "start + end + rest ms", "submitted/s", "CPU us"], &rows)
}

/// Kill to write.
#[must_use]
pub fn failover(outages: &[Duration]) -> String {
    let ms: Vec<_> = outages.iter().map(|outage| outage.as_secs_f64() * 1000.0).collect();
    let worst = ms.iter().copied().fold(0.0, f64::max);
    let each = ms.iter().fold(String::new(), |mut text, ms| {
        write!(text, "{}{ms:.0}", if text.is_empty() { "" } else { " " }).expect("a String takes everything");
        text
    });
    let row = vec![ms.len().to_string(), format!("{:.0}", median(&ms)), format!("{worst:.0}"), each];
    render(&["kills", "median ms", "max ms", "each"], &[row])
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["1".to_owned(), "12345".to_owned()], vec!["256".to_owned(), "9".to_owned()]];
        assert_eq!(
            render(&["n", "per s"], &rows),
            "|   n | per s |\n| --: | ----: |\n|   1 | 12345 |\n| 256 |     9 |\n"
        );
    }
}
