//! The report as one page that needs nothing else: no network, no file beside it.

use anyhow::Result;

use super::Report;

/// The page; the report takes the place of the mark.
const PAGE: &str = include_str!("page.html");
const MARK: &str = "@REPORT@";

/// The whole page as HTML.
///
/// # Errors
/// When the report cannot be written as JSON.
pub fn page(report: &Report) -> Result<String> {
    // Inside a script element only its end could be mistaken.
    let json = serde_json::to_string(report)?.replace("</", "<\\/");
    Ok(PAGE.replacen(MARK, &json, 1))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::report::sample;
    use super::*;

    #[test]
    fn the_page_needs_no_network_and_carries_the_report() {
        let mut report = sample();
        report.remarks.push("</script><script>alert(1)</script>".into());
        let text = page(&report).unwrap();
        assert!(!text.contains(MARK) && text.contains("Duet ephemeral, UDP"));
        assert_eq!(text.matches("</script>").count(), 2, "nothing ends the script early");
        for outside in ["http://", "https://", "src=", "@import", "url(//"] {
            assert!(!text.contains(outside), "{outside}");
        }
    }

    /// In a real browser, as wide as a phone and as a large screen: the scripts run to their end and draw.
    #[test]
    fn a_browser_draws_everything() {
        let programs = ["chromium", "chromium-browser", "google-chrome"];
        let is_there = |program: &&&str| Command::new(program).arg("--version").output().is_ok();
        let Some(browser) = programs.iter().find(is_there) else {
            eprintln!("SKIPPED: no browser (chromium) to open the page with");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("page.html");
        std::fs::write(&file, page(&sample()).unwrap()).unwrap();
        for size in ["--window-size=390,844", "--window-size=1920,1080"] {
            let output = Command::new(browser)
                .args(["--headless", "--no-sandbox", "--disable-gpu", size, "--dump-dom"])
                .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
                .arg(&file)
                .output()
                .unwrap();
            let dom = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !dom.is_empty(), "{size}: {output:?}");
            // Two exchanges, the times, bytes and processor time; memory was not measured.
            assert_eq!(
                dom.matches("role=\"img\"").count() - PAGE.matches("role=\"img\"").count(),
                5,
                "{size}"
            );
            for drawn in
                ["<polyline", "confirmed after 300 ms", "not measured in this run", "2 of 4"]
            {
                let plain = PAGE.matches(drawn).count();
                assert!(dom.matches(drawn).count() > plain, "{size}: {drawn}");
            }
        }
    }
}
