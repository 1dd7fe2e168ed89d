//! Which node an instance goes to: the one with the most memory left, so that load spreads.

use std::collections::BTreeMap;
use std::fmt;

use karri_base::id::InstanceId;
use karri_base::proto::NodeReport;
use karri_base::proto::incarnation::State;

use super::Placed;

/// What a node has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Free {
    /// Its name.
    pub node: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Free {
    /// What `report`'s node has left when everything that was placed there runs, and what it runs unplaced stays.
    pub fn of(report: &NodeReport, placed: &BTreeMap<InstanceId, Placed>) -> Self {
        let here = placed.values().filter(|p| p.node == report.node);
        let (mut vcpus, mut memory) =
            here.fold((0u32, 0u64), |(c, m), p| (c.saturating_add(p.vcpus), m.saturating_add(p.memory_bytes)));
        // A report does not say how large each instance is. Where all that runs was placed here, placements say it
        // all; where something else runs, the node's own sum is the better bound.
        let unplaced = report.instances.iter().any(|i| {
            let runs = matches!(i.state(), State::Starting | State::Running | State::Stopping);
            let known = i.instance_id.parse::<InstanceId>().ok().and_then(|id| placed.get(&id));
            runs && known.is_none_or(|p| p.node != report.node)
        });
        if unplaced {
            vcpus = vcpus.max(report.vcpus_used);
            memory = memory.max(report.memory_used);
        }
        Self {
            node: report.node.clone(),
            vcpus: report.vcpus_total.saturating_sub(vcpus),
            memory_bytes: report.memory_total.saturating_sub(memory),
        }
    }
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has {} and {} MiB", self.node, self.vcpus, self.memory_bytes >> 20)
    }
}

/// The node for an instance; the first name among equals, so that the choice is repeatable.
pub fn choose(nodes: &[Free], vcpus: u32, memory_bytes: u64) -> Option<&str> {
    let fitting = nodes.iter().filter(|n| n.vcpus >= vcpus && n.memory_bytes >= memory_bytes);
    let best = fitting
        .max_by(|a, b| (a.memory_bytes, a.vcpus).cmp(&(b.memory_bytes, b.vcpus)).then_with(|| b.node.cmp(&a.node)));
    best.map(|n| n.node.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use karri_base::proto::Incarnation;

    fn free(node: &str, vcpus: u32, memory_bytes: u64) -> Free {
        Free { node: node.into(), vcpus, memory_bytes }
    }

    #[test]
    fn the_emptiest_node_that_fits_is_chosen() {
        let check = |nodes: &[Free], want: Option<&str>| assert_eq!(choose(nodes, 2, 100), want, "{nodes:?}");
        check(&[], None);
        check(&[free("a", 2, 100)], Some("a"));
        check(&[free("a", 1, 1000), free("b", 2, 99)], None);
        check(&[free("a", 4, 200), free("b", 4, 300)], Some("b"));
        check(&[free("b", 4, 200), free("a", 4, 200)], Some("a"));
        check(&[free("a", 1, 900), free("b", 2, 100)], Some("b"));
    }

    #[test]
    fn placements_count_before_they_run_and_strays_count_too() {
        let (a, stray) = (InstanceId::from_bits(1), InstanceId::from_bits(2));
        let placed = Placed { version: 1, node: "n".into(), vcpus: 2, memory_bytes: 100 };
        let elsewhere = Placed { node: "m".into(), ..placed.clone() };
        let placements = [(a, placed), (InstanceId::from_bits(3), elsewhere)].into();
        let mut report = NodeReport { node: "n".into(), vcpus_total: 8, memory_total: 1000, ..NodeReport::default() };
        assert_eq!(Free::of(&report, &placements), free("n", 6, 900));
        let mut running = Incarnation { instance_id: stray.to_string(), ..Incarnation::default() };
        running.set_state(State::Running);
        report.instances.push(running);
        (report.vcpus_used, report.memory_used) = (5, 700);
        assert_eq!(Free::of(&report, &placements), free("n", 3, 300));
    }
}
