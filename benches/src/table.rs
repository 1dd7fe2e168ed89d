//! Medians and how they are printed.

use std::collections::BTreeMap;

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// How many operations were measured.
    pub operations: usize,
    /// Operations or I/Os per second.
    pub rate: f64,
    /// Server CPU per operation, in microseconds.
    pub cpu_us: f64,
    /// The median latency, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile of latency, in microseconds.
    pub p99_us: f64,
}

/// What was measured, by workload (in the order of their first measurement) and server.
#[derive(Default)]
pub struct Results {
    workloads: Vec<String>,
    /// In the order of their first measurement.
    servers: Vec<&'static str>,
    samples: BTreeMap<(String, &'static str), Vec<Sample>>,
    /// Most resident bytes of a server.
    memory: BTreeMap<&'static str, u64>,
}

impl Results {
    /// Adds a measurement.
    pub fn add(&mut self, workload: &str, server: &'static str, sample: Sample) {
        if !self.workloads.iter().any(|w| w == workload) {
            self.workloads.push(workload.to_owned());
        }
        if !self.servers.contains(&server) {
            self.servers.push(server);
        }
        self.samples.entry((workload.to_owned(), server)).or_default().push(sample);
    }

    /// Adds how much memory a server took; the most is kept.
    pub fn memory(&mut self, server: &'static str, bytes: u64) {
        let most = self.memory.entry(server).or_default();
        *most = bytes.max(*most);
    }

    /// Prints the medians of each workload with the ratios of `ours` to each other server: ours first, then the others by
    /// name.
    pub fn print(&self, title: &str, ours: &'static str) {
        let mut servers = self.servers.clone();
        servers.sort_by_key(|&server| (server != ours, server));
        println!("\n{title}");
        println!(
            "{:<22} {:<22} {:>10} {:>9} {:>9} {:>9}  {:>7} {:>7}  rates of the rounds",
            "workload", "server", "rate/s", "p50 us", "p99 us", "CPU us", "rate x", "CPU x"
        );
        for workload in &self.workloads {
            let of = |server| self.samples.get(&(workload.clone(), server));
            let mine = of(ours).map(|samples| median(samples));
            for &server in &servers {
                let Some(samples) = of(server) else { continue };
                let m = median(samples);
                let ratio = |a: f64, b: f64| if b > 0.0 { format!("{:.2}", a / b) } else { "-".into() };
                let (rate_ratio, cpu_ratio) = match mine {
                    Some(mine) if server != ours => (ratio(mine.rate, m.rate), ratio(mine.cpu_us, m.cpu_us)),
                    _ => (String::new(), String::new()),
                };
                let rounds: Vec<String> = samples.iter().map(|s| format!("{:.0}", s.rate)).collect();
                println!(
                    "{workload:<22} {server:<22} {:>10.0} {:>9.0} {:>9.0} {:>9.1}  {rate_ratio:>7} {cpu_ratio:>7}  {}",
                    m.rate,
                    m.p50_us,
                    m.p99_us,
                    m.cpu_us,
                    rounds.join(" ")
                );
            }
        }
        for (server, bytes) in self.memory.iter().filter(|(_, bytes)| **bytes > 0) {
            println!("most memory resident: {server:<22} {:>6} MiB", bytes >> 20);
        }
        println!("rate x, CPU x: {ours} divided by that server; more rate and less CPU is better for {ours}");
    }
}

fn median(samples: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => 0.0,
            n if n % 2 == 1 => values[n / 2],
            n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        }
    };
    Sample {
        operations: 0,
        rate: of(|s| s.rate),
        cpu_us: of(|s| s.cpu_us),
        p50_us: of(|s| s.p50_us),
        p99_us: of(|s| s.p99_us),
    }
}

/// The value that a share of the latencies does not exceed; sorts them.
pub fn percentile(latencies_us: &mut [u32], share: f64) -> f64 {
    if latencies_us.is_empty() {
        return 0.0;
    }
    latencies_us.sort_unstable();
    let at = (latencies_us.len() as f64 * share) as usize;
    f64::from(latencies_us[at.min(latencies_us.len() - 1)])
}
